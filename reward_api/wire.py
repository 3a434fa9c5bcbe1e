"""One request and one response model in msgpack and JSON; multipart arrives here as form fields.

Two kinds of fault are kept apart. What makes the request as a whole unreadable (not decodable, unknown fields,
too many items) raises `EnvelopeError`. What is wrong with one item becomes that item's `ItemError` and harms no other.
"""

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from reward_api.contract import ErrorCode, Item, ItemError, Outcome, RewardInfo, Score
from reward_api.images import pixels_from_file, pixels_from_raw
from reward_api.limits import Limits
from reward_api.problems import EnvelopeError

MSGPACK = "application/msgpack"
JSON = "application/json"
_HALF = "it holds half of a surrogate pair"
Keep = Callable[[Item], Item]
_MSGPACK_NAMES = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A decoded request. `rewards[i]` are the rewards asked of `items[i]`, also where the item is an error."""

    items: list[Item | ItemError]
    rewards: list[tuple[str, ...]]
    deterministic: bool = False


@lru_cache
def is_msgpack(media_type: str) -> bool:
    """Whether a Content-Type or Accept header names msgpack."""
    return any(part.split(";")[0].strip().lower() in _MSGPACK_NAMES for part in media_type.split(","))


def encode_request(items: Sequence[Item], *, deterministic: bool = False, only_reward: bool = False) -> bytes:
    """The msgpack body of a request, pixels as they are. With `only_reward` no item names any: a service has one."""
    wire = [
        {
            "image": {"shape": item.image.shape, "data": _pixels(item.image)},
            "prompt": item.prompt,
            "metadata": item.metadata,
            "rewards": () if only_reward else item.rewards,
        }
        for item in items
    ]
    return msgspec.msgpack.encode({"items": wire, "deterministic": deterministic})


def decode_request(content_type: str, body: bytes, limits: Limits, keep: Keep | None = None) -> ScoreRequest:
    """Read a msgpack or JSON body. Raises EnvelopeError (400, 415 or 422)."""
    media_type = content_type.split(";")[0].strip().lower()
    if is_msgpack(media_type):
        document = _decode_msgpack(body)
    elif media_type == JSON:
        document = _decode_json(body)
    else:
        detail = f"Content-Type {media_type or 'missing'}: send {MSGPACK}, {JSON} or multipart/form-data"
        raise EnvelopeError(415, "Unsupported media type", detail)
    return read_request(document, limits, keep)


def read_request(document: Any, limits: Limits, keep: Keep | None = None) -> ScoreRequest:
    """Read an envelope {"items", "rewards"?, "deterministic"?} of plain values, item by item.

    `keep` is called with each sound item as soon as it is read, in order, and its answer stands in the item's place:
    who puts images away one by one never holds all of them.
    """
    if not isinstance(document, dict):
        raise EnvelopeError(422, "Invalid request", "the body must be an object with a list of items")
    _refuse_unknown(document, {"items", "rewards", "deterministic"}, "the request")
    wire_items = document.get("items")
    if not isinstance(wire_items, list) or not wire_items:
        raise EnvelopeError(422, "Invalid request", "items must be a list with at least one item")
    if len(wire_items) > limits.max_items:
        detail = f"{len(wire_items)} items in one request, at most {limits.max_items}"
        raise EnvelopeError(413, "Too many items", detail)
    deterministic = document.get("deterministic", False)
    if not isinstance(deterministic, bool):
        raise EnvelopeError(422, "Invalid request", "deterministic must be true or false")
    default = _read_rewards(document.get("rewards"), "the request")

    items: list[Item | ItemError] = []
    rewards: list[tuple[str, ...]] = []
    for index, wire_item in enumerate(wire_items):
        where = f"item {index}"
        if not isinstance(wire_item, dict):
            raise EnvelopeError(422, "Invalid request", f"{where} must be an object", item=index)
        _refuse_unknown(wire_item, {"image", "prompt", "metadata", "rewards"}, where, item=index)
        asked = _read_rewards(wire_item.get("rewards"), where, item=index) or default
        rewards.append(asked)
        item = _read_item(wire_item, asked, limits)
        items.append(keep(item) if keep is not None and isinstance(item, Item) else item)
    return ScoreRequest(items, rewards, deterministic)


def status_of(outcomes: Sequence[Mapping[str, Outcome]]) -> int:
    """200 unless every outcome is an error: then 503 (no replica, overloaded), 504 (deadline) or 422."""
    errors: list[str] = []
    for results in outcomes:
        for outcome in results.values():
            if isinstance(outcome, Score):
                return 200
            errors.append(outcome.code)
    if ErrorCode.NO_REPLICA in errors or ErrorCode.OVERLOADED in errors:
        return 503
    if ErrorCode.DEADLINE in errors:
        return 504
    return 422 if errors else 200


def encode_response(outcomes: Sequence[Mapping[str, Outcome]], accept: str = "") -> tuple[bytes, str]:
    """(body, media type): msgpack where `accept` names it, else JSON."""
    items = [{"results": {name: wire_outcome(outcome) for name, outcome in results.items()}} for results in outcomes]
    document = {"items": items}
    if is_msgpack(accept):
        return msgspec.msgpack.encode(document), MSGPACK
    return msgspec.json.encode(document), JSON


def encode_line(index: int, results: Mapping[str, Outcome]) -> bytes:
    """One line of a file of results: the item's index, and its results as in a response."""
    wire = {name: wire_outcome(outcome) for name, outcome in results.items()}
    return msgspec.json.encode({"index": index, "results": wire}) + b"\n"


def decode_response(content_type: str, body: bytes) -> list[dict[str, Outcome]]:
    """The outcomes of a response by index. Raises ValueError if it is not one (NaN scores included)."""
    decoder = msgspec.msgpack if is_msgpack(content_type) else msgspec.json
    try:
        response: _WireResponse = decoder.decode(body, type=_WireResponse)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
    return [{name: _read_outcome(name, wire) for name, wire in item.results.items()} for item in response.items]


def decode_rewards(body: bytes) -> list[RewardInfo]:
    """Read the JSON of `/v1/rewards` ({"rewards": [...]}) or of one service's `/v1/info`. Raises ValueError."""
    response: _WireRewards | RewardInfo
    try:
        if b'"rewards"' in body[:32]:
            response = msgspec.json.decode(body, type=_WireRewards)
            return response.rewards
        response = msgspec.json.decode(body, type=RewardInfo)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
    return [response]


def wire_outcome(outcome: Outcome) -> dict[str, Any]:
    """{"score", "details"} or {"error": {"code", "message"}}, as in a response."""
    if isinstance(outcome, Score):
        return {"score": outcome.score, "details": outcome.details}
    return {"error": {"code": outcome.code, "message": _escaped(outcome.message)}}


def read_results(document: Any) -> dict[str, Outcome]:
    """Reward -> outcome of what `wire_outcome` wrote for each, as plain values. Raises ValueError."""
    results = msgspec.convert(document, dict[str, _WireResult])
    return {name: _read_outcome(name, wire) for name, wire in results.items()}


def _pixels(image: NDArray[np.uint8]) -> memoryview | bytes:
    """The pixels row by row, copied only where they do not lie so."""
    return image.data if image.flags.c_contiguous else image.tobytes()


class _WireResult(msgspec.Struct):
    score: float | None = None
    details: dict[str, Any] = {}
    error: ItemError | None = None


class _WireItem(msgspec.Struct):
    results: dict[str, _WireResult]


class _WireResponse(msgspec.Struct):
    items: list[_WireItem]


class _WireRewards(msgspec.Struct):
    rewards: list[RewardInfo]


def _read_outcome(name: str, wire: _WireResult) -> Outcome:
    if wire.error is not None:
        return wire.error
    if wire.score is None:
        raise ValueError(f"result of {name!r} has neither score nor error")
    return Score(wire.score, wire.details)


def read_json(text: str | bytes) -> Any:
    """A JSON value, NaN and overflowing numbers included. Raises ValueError, also for halves of a surrogate pair.

    JSON can spell those, but they are no text that could be sent on or stored.
    """
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _decode_msgpack(body: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise EnvelopeError(400, "Malformed request", f"the body is not valid msgpack: {error}") from None


def _decode_json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        strict_error = error
    try:
        # The lenient parser reads NaN and overflowing numbers, so that the item holding them can be named.
        return read_json(body)
    except (ValueError, RecursionError):
        raise EnvelopeError(400, "Malformed request", f"the body is not valid JSON: {strict_error}") from None


def _refuse_unknown(members: Mapping[Any, Any], known: set[str], where: str, **extra: Any) -> None:
    if members.keys() - known:
        unknown = sorted(_escaped(str(name)) for name in members if name not in known)
        detail = f"{where} has unknown fields: {', '.join(unknown)[:200]}; known: {', '.join(sorted(known))}"
        raise EnvelopeError(422, "Unknown field", detail, **extra)


def _read_rewards(names: Any, where: str, **extra: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) and name and _is_unicode(name) for name in names):
        raise EnvelopeError(422, "Invalid request", f"rewards of {where} must be a list of names", **extra)
    return tuple(dict.fromkeys(names))


def _read_item(wire: Mapping[str, Any], rewards: tuple[str, ...], limits: Limits) -> Item | ItemError:
    prompt = wire.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        return ItemError(ErrorCode.MISSING_PROMPT, "prompt must be a text that is not empty")
    if not _is_unicode(prompt):
        return ItemError(ErrorCode.MISSING_PROMPT, f"prompt is no valid Unicode: {_HALF}")
    if len(prompt) > limits.max_prompt_chars:
        message = f"prompt has {len(prompt)} characters, at most {limits.max_prompt_chars}"
        return ItemError(ErrorCode.PROMPT_TOO_LONG, message)
    metadata = wire.get("metadata")
    fault = _fault_of_metadata(metadata, limits.max_metadata_depth)
    if fault is not None:
        return ItemError(ErrorCode.BAD_METADATA, fault)
    pixels = _read_image(wire.get("image"), limits)
    if isinstance(pixels, ItemError):
        return pixels
    return Item(pixels, prompt, metadata, rewards)


def _read_image(wire: Any, limits: Limits) -> Any:
    """Pixels of {"shape", "data"} or {"base64"}, or of the bytes of an image file, or an ItemError."""
    if isinstance(wire, bytes):
        return pixels_from_file(wire, limits)
    if isinstance(wire, dict) and wire.keys() == {"base64"} and isinstance(wire["base64"], str):
        try:
            data = base64.b64decode(wire["base64"], validate=True)
        except (binascii.Error, ValueError) as error:
            return ItemError(ErrorCode.BAD_IMAGE, f"image is not base64: {error}")
        return pixels_from_file(data, limits)
    if isinstance(wire, dict) and wire.keys() == {"shape", "data"} and isinstance(wire["data"], bytes):
        shape = wire["shape"]
        if isinstance(shape, list) and all(type(size) is int for size in shape):
            return pixels_from_raw(shape, wire["data"], limits)
    message = 'image must be {"shape": [h, w, 3], "data": bytes} (msgpack), {"base64": text} or an image file'
    return ItemError(ErrorCode.BAD_IMAGE, message)


def _fault_of_metadata(metadata: Any, max_depth: int) -> str | None:
    """What keeps `metadata` from being a JSON object of finite numbers, or None."""
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        return "metadata must be an object"
    pending: list[tuple[Any, str, int]] = [(metadata, "metadata", 1)]
    while pending:
        value, path, depth = pending.pop()
        if depth > max_depth:
            return f"metadata is nested deeper than {max_depth}"
        if isinstance(value, dict):
            for key, member in value.items():
                if not isinstance(key, str):
                    return f"{path} has a key that is not a text"
                if not _is_unicode(key):
                    return f"{path} has a key that is no valid Unicode: {_HALF}"
                pending.append((member, f"{path}.{key[:40]}", depth + 1))
        elif isinstance(value, list):
            pending.extend((member, f"{path}[{place}]", depth + 1) for place, member in enumerate(value))
        elif isinstance(value, float):
            if not math.isfinite(value):
                return f"{path} is {value}; numbers must be finite"
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                return f"{path} is an integer of more than 64 bits"
        elif isinstance(value, str):
            if not _is_unicode(value):
                return f"{path} is no valid Unicode: {_HALF}"
        elif value is not None:
            return f"{path} is no JSON value"
    return None


def _is_unicode(text: str) -> bool:
    """Whether `text` can be sent: JSON's \\u escapes can spell half of a surrogate pair, which UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(text: str) -> str:
    """`text` as it can be sent."""
    return text.encode(errors="backslashreplace").decode()
