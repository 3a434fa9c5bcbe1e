"""The OpenAPI description of /v1/jobs, whose bodies and queries are read by hand."""

from typing import Any

from reward_api.http import SCORE_OPENAPI

WAIT: dict[str, Any] = {
    "name": "wait",
    "in": "query",
    "description": "seconds to wait for the job's end",
    "schema": {"type": "number", "minimum": 0, "maximum": 60, "default": 0},
}
LIMIT: dict[str, Any] = {
    "name": "limit",
    "in": "query",
    "description": "how many jobs at most",
    "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 20},
}

_JOB = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "state": {"type": "string", "enum": ["queued", "running", "done", "cancelled"]},
        "items": {"type": "integer"},
        "results": {
            "type": "object",
            "description": "one for each item and reward; what is pending when a job is cancelled stays so",
            "properties": {name: {"type": "integer"} for name in ("scored", "failed", "pending")},
        },
        **{
            f"{name}_at": {"type": "string", "format": "date-time", "nullable": True}
            for name in ("created", "started", "finished", "expires")
        },
    },
}
_JSON = {"content": {"application/json": {"schema": _JOB}}}
_ANSWERS: dict[str, dict[str, Any]] = {
    "200": {"description": "what was asked for"},
    "202": {
        "description": "the job, kept",
        "headers": {"Location": {"schema": {"type": "string"}}},
        **_JSON,
    },
    "400": {"description": "the body cannot be read"},
    "401": {"description": "no bearer token, or a wrong one"},
    "404": {"description": "no such job, or this gateway keeps none"},
    "408": {"description": "the body took too long"},
    "413": {"description": "more items or bytes than a job may have"},
    "415": {"description": "a media type or content encoding that is not read here"},
    "422": {"description": "the request as a whole is wrong, or the key belongs to a job of other content"},
    "507": {"description": "the store of images is full"},
}


def described(*answers: str, parameter: dict[str, Any] | None = None) -> dict[str, Any]:
    """The part of an operation that FastAPI cannot know."""
    responses = {code: _ANSWERS[code] for code in (*answers, "401", "404")}
    return {"responses": responses} | ({"parameters": [parameter]} if parameter else {})


ADD: dict[str, Any] = {
    **described("202", "400", "408", "413", "415", "422", "507"),
    "requestBody": SCORE_OPENAPI["requestBody"],
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            "description": "a request sent again under the same key is the same job",
        }
    ],
}
