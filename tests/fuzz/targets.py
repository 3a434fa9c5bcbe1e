"""What is fuzzed: every decoder that reads bytes from outside. A target raises if a decoder breaks its promise."""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import numpy as np
from starlette.requests import Request

from reward_api import EnvelopeError, ErrorCode, Item, ItemError, Limits, Score
from reward_api.http import parse_score_request
from reward_api.images import pixels_from_file
from reward_api.wire import (
    JSON,
    MSGPACK,
    ScoreRequest,
    decode_request,
    decode_response,
    decode_rewards,
    encode_request,
    encode_response,
)

LIMITS = Limits(max_items=8, max_pixels=10_000, max_body_bytes=2**20, max_prompt_chars=256)
BOUNDARY = "fuzz"
_CODES = set(ErrorCode)
_loop = asyncio.Runner()


def request_msgpack(data: bytes) -> None:
    _request(MSGPACK, data)


def request_json(data: bytes) -> None:
    _request(JSON, data)


def request_form(data: bytes) -> None:
    """The body of a form whose parts are separated by --fuzz."""
    content_type = f"multipart/form-data; boundary={BOUNDARY}".encode()

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": data, "more_body": False}

    request = Request({"type": "http", "headers": [(b"content-type", content_type)]}, receive)
    try:
        parsed = _loop.run(parse_score_request(request, LIMITS))
    except EnvelopeError as error:
        _check_refusal(error)
        return
    _check_request(ScoreRequest(parsed.items, parsed.rewards, parsed.deterministic))


def response(data: bytes) -> None:
    """A service's answer, as the gateway and the client read it: in both encodings, and as what it says of itself."""
    for content_type in (MSGPACK, JSON):
        try:
            outcomes = decode_response(content_type, data)
        except ValueError:
            continue
        assert all(isinstance(one, Score | ItemError) for results in outcomes for one in results.values())
        body, kind = encode_response(outcomes, content_type)
        assert decode_response(kind, body) == outcomes
    with contextlib.suppress(ValueError):
        decode_rewards(data)


def image(data: bytes) -> None:
    pixels = pixels_from_file(data, LIMITS)
    if isinstance(pixels, ItemError):
        assert pixels.code in {ErrorCode.BAD_IMAGE, ErrorCode.IMAGE_TOO_LARGE}
        _check_text(pixels.message)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert pixels.shape[0] * pixels.shape[1] <= LIMITS.max_pixels


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (request_msgpack, request_json, request_form, response, image)
}


def _request(content_type: str, data: bytes) -> None:
    try:
        request = decode_request(content_type, data, LIMITS)
    except EnvelopeError as error:
        _check_refusal(error)
        return
    _check_request(request)


def _check_refusal(error: EnvelopeError) -> None:
    """It is the caller's fault, and can be sent."""
    assert 400 <= error.problem.status < 500
    msgspec.json.encode(error.problem.document())


def _check_request(request: ScoreRequest) -> None:
    """Items are within the limits and can be sent on: what is read again is the same."""
    assert 1 <= len(request.items) == len(request.rewards) <= LIMITS.max_items
    for item in request.items:
        if isinstance(item, ItemError):
            assert item.code in _CODES
            _check_text(item.message)
            continue
        assert item.image.size <= 3 * LIMITS.max_pixels
        assert item.prompt.strip()
        assert len(item.prompt) <= LIMITS.max_prompt_chars
        (again,) = decode_request(MSGPACK, encode_request([item]), LIMITS).items
        assert isinstance(again, Item)
        assert (again.prompt, again.metadata, again.rewards) == (item.prompt, item.metadata, item.rewards)
        assert np.array_equal(again.image, item.image)


def _check_text(text: str) -> None:
    assert msgspec.json.decode(msgspec.json.encode(text)) == text
