"""The OpenAPI description of what is parsed and rendered by hand: `POST /v1/score` in three encodings, and problems."""

from http import HTTPStatus
from typing import Any

_METADATA = {"type": ["object", "null"], "description": "what the reward needs beyond the prompt"}
_REWARDS = {"type": "array", "items": {"type": "string"}, "description": "rewards asked for; all items, or one"}

_FILE_IN_JSON = {
    "type": "object",
    "description": "a PNG, JPEG or WebP file in base64",
    "required": ["base64"],
    "properties": {"base64": {"type": "string", "format": "byte"}},
    "additionalProperties": False,
}
_PIXELS = {
    "type": "object",
    "description": "uint8 RGB, row by row: msgpack's bin type, [height, width, 3]",
    "required": ["shape", "data"],
    "properties": {
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 3, "maxItems": 3},
        "data": {"type": "string", "format": "binary"},
    },
    "additionalProperties": False,
}


def _envelope(image: dict[str, Any]) -> dict[str, Any]:
    item = {
        "type": "object",
        "required": ["image", "prompt"],
        "properties": {"image": image, "prompt": {"type": "string"}, "metadata": _METADATA, "rewards": _REWARDS},
        "additionalProperties": False,
    }
    deterministic = {"type": "boolean", "default": False, "description": "score batch-variant items one by one"}
    return {
        "type": "object",
        "required": ["items"],
        "properties": {
            "items": {"type": "array", "items": item, "minItems": 1},
            "rewards": _REWARDS,
            "deterministic": deterministic,
        },
        "additionalProperties": False,
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
    "additionalProperties": False,
}

_ERROR = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
}
_SCORED = {
    "type": "object",
    "required": ["score", "details"],
    "properties": {"score": {"type": "number"}, "details": {"type": "object"}},
}
_FAILED = {"type": "object", "required": ["error"], "properties": {"error": _ERROR}}

_RESULTS = {
    "type": "object",
    "required": ["items"],
    "properties": {
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["results"],
                "properties": {
                    "results": {"type": "object", "additionalProperties": {"oneOf": [_SCORED, _FAILED]}},
                },
            },
        }
    },
}

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457; further members such as item, the index of the item at fault",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_PROBLEM_CONTENT = {"application/problem+json": {"schema": _PROBLEM}}
_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 0}}}
_SAYS_WHEN = {429}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that refuses requests with these statuses."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": _PROBLEM_CONTENT,
            **({"headers": _RETRY_AFTER} if status in _SAYS_WHEN else {}),
        }
        for status in statuses
    }


def _answer(description: str, *, or_problem: bool = False) -> dict[str, Any]:
    content = {name: {"schema": _RESULTS} for name in ("application/json", "application/msgpack")}
    return {"description": description, "content": content | (_PROBLEM_CONTENT if or_problem else {})}


def _header(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


SCORE_OPENAPI: dict[str, Any] = {
    "parameters": [
        _header("X-Deadline-Ms", "how long the caller will wait", type="integer", minimum=0, maximum=10**12 - 1),
        _header("X-Request-ID", "comes back, stands in the log and goes on to the replicas", type="string"),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": _envelope(_FILE_IN_JSON)},
            "application/msgpack": {"schema": _envelope(_PIXELS)},
        },
    },
    "responses": {
        "200": _answer("one result or error for each item and reward"),
        **{str(status): answer for status, answer in problems(400, 401, 408, 413, 415, 429).items()},
        "422": _answer("every item failed by its input; or the request as a whole is wrong", or_problem=True),
        "503": _answer("no replica, or not ready; Retry-After", or_problem=True),
        "504": _answer("the deadline passed"),
    },
}
