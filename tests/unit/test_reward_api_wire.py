"""Encodings of requests and responses, and which faults belong to an item and which to the request."""

import base64
import json
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from reward_api import EnvelopeError, ErrorCode, Item, ItemError, Limits, Outcome, RewardInfo, Score
from reward_api.wire import (
    JSON,
    MSGPACK,
    decode_request,
    decode_response,
    decode_rewards,
    encode_request,
    encode_response,
    status_of,
)

pytestmark = pytest.mark.unit

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def png() -> str:
    buffer = BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def json_body(**item: Any) -> bytes:
    return json.dumps({"items": [{"image": {"base64": png()}, "prompt": "a cat", **item}]}).encode()


def only_item(body: bytes, content_type: str = JSON) -> Item | ItemError:
    request = decode_request(content_type, body, Limits())
    assert len(request.items) == 1
    return request.items[0]


def refusal(body: bytes, content_type: str = JSON) -> EnvelopeError:
    with pytest.raises(EnvelopeError) as caught:
        decode_request(content_type, body, Limits(max_items=3))
    return caught.value


def test_msgpack_round_trip() -> None:
    sent = Item(PIXELS, "a cat", {"tag": "x", "n": [1, 2.5, None, True]}, ("geneval", "ocr"))
    request = decode_request(MSGPACK, encode_request([sent, sent], deterministic=True), Limits())
    assert request.deterministic
    assert request.rewards == [("geneval", "ocr")] * 2
    for item in request.items:
        assert isinstance(item, Item)
        np.testing.assert_array_equal(item.image, PIXELS)
        assert (item.prompt, item.metadata, item.rewards) == (sent.prompt, sent.metadata, sent.rewards)


def test_a_view_with_strides_is_sent_as_it_looks() -> None:
    item = only_item(encode_request([Item(PIXELS[:, ::-1], "a cat")]), MSGPACK)
    assert isinstance(item, Item)
    np.testing.assert_array_equal(item.image, PIXELS[:, ::-1])


def test_json_with_base64() -> None:
    item = only_item(json_body(metadata={"a": 1}), "application/json; charset=utf-8")
    assert isinstance(item, Item)
    np.testing.assert_array_equal(item.image, PIXELS)
    assert item.metadata == {"a": 1}


def test_rewards_of_the_request_hold_for_items_without_their_own() -> None:
    image = {"base64": png()}
    items = [{"image": image, "prompt": "a"}, {"image": image, "prompt": "b", "rewards": ["ocr", "ocr"]}]
    request = decode_request(JSON, json.dumps({"items": items, "rewards": ["geneval"]}).encode(), Limits())
    assert request.rewards == [("geneval",), ("ocr",)]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt": None}, ErrorCode.MISSING_PROMPT),
        ({"prompt": "  "}, ErrorCode.MISSING_PROMPT),
        ({"prompt": 7}, ErrorCode.MISSING_PROMPT),
        ({"prompt": "x" * 5000}, ErrorCode.PROMPT_TOO_LONG),
        ({"metadata": "text"}, ErrorCode.BAD_METADATA),
        ({"metadata": {"a": [1, {"b": float("nan")}]}}, ErrorCode.BAD_METADATA),
        ({"metadata": {"a": 2**64}}, ErrorCode.BAD_METADATA),
        ({"metadata": {"a": float("-inf")}}, ErrorCode.BAD_METADATA),
        ({"image": None}, ErrorCode.BAD_IMAGE),
        ({"image": "http://example.org/cat.png"}, ErrorCode.BAD_IMAGE),
        ({"image": {"base64": "@@@"}}, ErrorCode.BAD_IMAGE),
        ({"image": {"base64": "aGVsbG8="}}, ErrorCode.BAD_IMAGE),
        ({"image": {"shape": [4, 5, 3], "data": "text"}}, ErrorCode.BAD_IMAGE),
    ],
)
def test_a_fault_of_an_item_is_its_error(change: dict[str, Any], code: str) -> None:
    error = only_item(json_body(**change))
    assert isinstance(error, ItemError)
    assert error.code == code
    assert not error.retryable


def test_a_bad_item_leaves_its_neighbours_and_its_rewards() -> None:
    good = {"image": {"base64": png()}, "prompt": "a", "rewards": ["ocr"]}
    bad = {**good, "image": {"base64": png()[:40]}}
    request = decode_request(JSON, json.dumps({"items": [good, bad, good]}).encode(), Limits())
    assert [isinstance(item, Item) for item in request.items] == [True, False, True]
    assert request.rewards == [("ocr",)] * 3


def test_the_place_of_a_number_that_is_not_finite_is_named() -> None:
    error = only_item(json_body(metadata={"include": [{"count": float("nan")}]}))
    assert isinstance(error, ItemError)
    assert "metadata.include[0].count" in error.message


def test_a_number_that_overflows_is_refused() -> None:
    body = json_body(metadata={"a": 1}).replace(b'"a": 1', b'"a": 1e999')
    error = only_item(body)
    assert isinstance(error, ItemError)
    assert error.code == ErrorCode.BAD_METADATA


@pytest.mark.parametrize(
    "metadata", [{1: "a"}, {"a": b"bytes"}, {"a": msgspec.msgpack.Ext(5, b"x")}, {"a": float("nan")}]
)
def test_msgpack_metadata_must_be_json_values(metadata: dict[Any, Any]) -> None:
    image = {"shape": PIXELS.shape, "data": PIXELS.tobytes()}
    body = msgspec.msgpack.encode({"items": [{"image": image, "prompt": "a", "metadata": metadata}]})
    error = only_item(body, MSGPACK)
    assert isinstance(error, ItemError)
    assert error.code == ErrorCode.BAD_METADATA


def test_deep_metadata_is_refused() -> None:
    metadata: dict[str, Any] = {}
    for _ in range(40):
        metadata = {"a": metadata}
    error = only_item(json_body(metadata=metadata))
    assert isinstance(error, ItemError)
    assert "nested" in error.message


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 200_000, 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"items": []}', 422),
        (b'{"items": [3]}', 422),
        (b'{"items": [{}], "deterministic": 1}', 422),
        (b'{"items": [{"rewards": "ocr"}]}', 422),
        (b'{"items": [{"rewards": [1]}]}', 422),
        (b'{"items": [{}, {}, {}, {}]}', 413),
        (b'{"items": [{}], "model": "x"}', 422),
    ],
)
def test_faults_of_the_envelope(body: bytes, status: int) -> None:
    assert refusal(body).problem.status == status


def test_malformed_msgpack() -> None:
    assert refusal(b"\xc1", MSGPACK).problem.status == 400
    assert refusal(b"\x91" * 100_000, MSGPACK).problem.status == 400
    assert refusal(b"\x81\x80\x01", MSGPACK).problem.status == 400  # a map as the key of a map


def test_other_media_types_are_refused() -> None:
    assert refusal(b"", "application/x-pickle").problem.status == 415
    assert refusal(b"", "").problem.status == 415


def test_an_unknown_field_names_item_and_field() -> None:
    items = [{"prompt": "a"}, {"prompt": "b", "weight": 2}]
    fault = refusal(json.dumps({"items": items}).encode())
    assert fault.problem.status == 422
    assert fault.problem.extra["item"] == 1
    assert "weight" in fault.problem.detail


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", MSGPACK, f"text/html, {MSGPACK};q=0.9"])
def test_response_round_trip(accept: str) -> None:
    outcomes: list[dict[str, Outcome]] = [
        {"geneval": Score(0.5, {"correct": False}), "ocr": ItemError("missing_text", "no quotes")},
        {"geneval": Score(-3.0)},
    ]
    body, media_type = encode_response(outcomes, accept)
    assert media_type == (MSGPACK if MSGPACK in accept else JSON)
    assert decode_response(media_type, body) == outcomes


def test_a_response_without_score_or_error_is_no_response() -> None:
    for body in (b'{"items": [{"results": {"ocr": {}}}]}', b'{"items": 3}', b"nonsense"):
        with pytest.raises(ValueError):  # noqa: PT011 - msgspec's errors and ours share only this base
            decode_response(JSON, body)


def test_a_nan_score_does_not_pass() -> None:
    body = msgspec.msgpack.encode({"items": [{"results": {"ocr": {"score": float("nan")}}}]})
    with pytest.raises(ValueError, match="finite"):
        decode_response(MSGPACK, body)
    with pytest.raises(ValueError, match="finite"):
        Score(float("inf"))


OK = Score(1.0)


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ([[OK]], 200),
        ([["bad_image"], [OK]], 200),
        ([["bad_image"], ["missing_prompt"]], 422),
        ([["scorer_failed"]], 422),
        ([["no_replica"], ["bad_image"]], 503),
        ([["overloaded"]], 503),
        ([["deadline"], ["bad_image"]], 504),
        ([], 200),
    ],
)
def test_status(codes: list[list[Any]], status: int) -> None:
    outcomes = [{str(i): c if c is OK else ItemError(c, "") for i, c in enumerate(row)} for row in codes]
    assert status_of(outcomes) == status


def test_reward_information_of_gateway_and_service() -> None:
    info = RewardInfo("ocr", "1", (0.0, None), "how well", "none", 8, True)
    one = msgspec.json.encode(info)
    assert decode_rewards(one) == [info]
    assert decode_rewards(b'{"rewards":[' + one + b"]}") == [info]


def test_items_must_hold_rgb_bytes() -> None:
    for image in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            Item(image, "a cat")  # type: ignore[arg-type]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["items", "image", "prompt", "metadata", "rewards", "deterministic", "shape", "data"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy, first draws slow
@given(st.dictionaries(fields, json_values, max_size=4), st.lists(st.dictionaries(fields, json_values), max_size=3))
def test_any_msgpack_document_gives_items_errors_or_a_refusal(envelope: dict[str, Any], items: list[Any]) -> None:
    body = msgspec.msgpack.encode({**envelope, "items": items} if items else envelope)
    try:
        request = decode_request(MSGPACK, body, Limits())
    except EnvelopeError:
        return
    assert len(request.items) == len(request.rewards) > 0
    assert all(item.image.size for item in request.items if isinstance(item, Item))


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([MSGPACK, JSON]))
def test_any_bytes_give_a_refusal(body: bytes, content_type: str) -> None:
    with pytest.raises(EnvelopeError):
        decode_request(content_type, body, Limits())
