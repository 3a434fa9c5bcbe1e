"""The OpenAPI description of `POST /v1/score`, whose three encodings are parsed by hand."""

from typing import Any

_METADATA = {"type": "object", "nullable": True, "description": "what the reward needs beyond the prompt"}
_REWARDS = {"type": "array", "items": {"type": "string"}, "description": "rewards asked for; all items, or one"}

_ITEM = {
    "type": "object",
    "required": ["image", "prompt"],
    "properties": {
        "image": {
            "type": "object",
            "description": "JSON: {base64: PNG, JPEG or WebP file}; msgpack: {shape: [h, w, 3], data: uint8 RGB}",
            "properties": {"base64": {"type": "string", "format": "byte"}},
        },
        "prompt": {"type": "string"},
        "metadata": _METADATA,
        "rewards": _REWARDS,
    },
}

_ENVELOPE = {
    "type": "object",
    "required": ["items"],
    "properties": {
        "items": {"type": "array", "items": _ITEM},
        "rewards": _REWARDS,
        "deterministic": {"type": "boolean", "default": False, "description": "score batch-variant items one by one"},
    },
}

_FORM = {
    "type": "object",
    "required": ["image", "prompt"],
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "a PNG, JPEG or WebP file; repeatable"},
        "prompt": {"type": "string", "description": "one for all images, or one each"},
        "metadata": {"type": "string", "description": "a JSON object"},
        "rewards": {"type": "string", "description": "names, separated by commas"},
        "deterministic": {"type": "string", "enum": ["true", "false"], "default": "false"},
    },
}

_RESULT = {
    "type": "object",
    "description": "either score and details, or error",
    "properties": {
        "score": {"type": "number"},
        "details": {"type": "object"},
        "error": {"type": "object", "properties": {"code": {"type": "string"}, "message": {"type": "string"}}},
    },
}

_RESULTS = {
    "type": "object",
    "properties": {
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"results": {"type": "object", "additionalProperties": _RESULT}},
            },
        }
    },
}


def _answer(description: str) -> dict[str, Any]:
    content = {name: {"schema": _RESULTS} for name in ("application/json", "application/msgpack")}
    return {"description": description, "content": content}


SCORE_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": _ENVELOPE},
            "application/msgpack": {"schema": _ENVELOPE},
        },
    },
    "responses": {
        "200": _answer("one result or error for each item and reward"),
        "422": _answer("every item failed by its input; or application/problem+json for the request as a whole"),
        "429": {"description": "the queue is full; Retry-After says when it should have room"},
        "503": _answer("no replica; Retry-After"),
        "504": _answer("the deadline passed"),
    },
}
