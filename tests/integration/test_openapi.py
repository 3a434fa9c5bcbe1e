"""Requests made up from the OpenAPI documents of a gateway and of a service: every answer is a documented one."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from flow_grpo.runner import LocalStack

pytestmark = pytest.mark.integration

DOCUMENTED_5XX = {503, 504}
CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = st.sampled_from([png(4, 4), png(64, 64), png(64, 64)[:-20]]) | st.binary(max_size=64)
schemathesis.openapi.format("byte", FILES.map(lambda data: base64.b64encode(data).decode()))
schemathesis.openapi.format("binary", FILES)


@schemathesis.serializer("application/msgpack")
def as_msgpack(context: schemathesis.SerializationContext, value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value, enc_hook=lambda other: getattr(other, "data", str(other)))
    except OverflowError:  # integers that msgpack has no place for
        return repr(value).encode(errors="replace")


@schemathesis.deserializer("application/msgpack")
def from_msgpack(context: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return msgspec.msgpack.decode(response.content)


@schemathesis.deserializer("application/problem+json")
def from_problem(context: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return json.loads(response.content)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    logs = tmp_path_factory.mktemp("logs")
    with LocalStack({"geneval": {"world": "small"}}, log_dir=logs, start_timeout_s=300) as running:
        yield running


def ask(case: schemathesis.Case) -> None:
    answer = case.call(timeout=30)
    if answer.status_code not in DOCUMENTED_5XX:
        case.validate_response(answer, checks=[not_a_server_error])
    case.validate_response(answer, checks=CHECKS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize("which", ["gateway", "service"])
def test_every_answer_is_documented_and_no_fault_of_the_server(
    stack: LocalStack, which: str, mode: GenerationMode
) -> None:
    url = stack.gateway_url if which == "gateway" else stack.services[0].url
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.label for operation in operations} >= {"POST /v1/score", "GET /readyz", "GET /metrics"}
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body and not any(operation.iter_parameters()):
            continue  # nothing about it can be invalid
        bounded = settings(
            max_examples=100 if operation.label == "POST /v1/score" else 3,
            phases=[Phase.generate],  # a failing request is printed as it is: shrinking it would take minutes
            suppress_health_check=list(HealthCheck),
        )
        try:
            bounded(given(case=operation.as_strategy(generation_mode=mode))(ask))()
        except Unsatisfiable:  # any string is a valid one: nothing invalid is found, or only now and then
            if mode is GenerationMode.POSITIVE or operation.body:
                raise


async def test_the_documents_examples_of_a_request_are_understood(stack: LocalStack) -> None:
    """What is made up is mostly refused; these are the three encodings as a caller would send them."""
    picture = png(64, 64)
    item = {"prompt": "a photo of a red circle", "rewards": ["geneval"]}
    in_json = {"items": [{**item, "image": {"base64": base64.b64encode(picture).decode()}}]}
    pixels = {"shape": [64, 64, 3], "data": bytes([128]) * (64 * 64 * 3)}
    in_msgpack = msgspec.msgpack.encode({"items": [{**item, "image": pixels}]})
    async with httpx.AsyncClient(base_url=stack.gateway_url, trust_env=False, timeout=60) as client:
        answers = [
            await client.post("/v1/score", json=in_json),
            await client.post("/v1/score", content=in_msgpack, headers={"Content-Type": "application/msgpack"}),
            await client.post("/v1/score", files={"image": picture}, data=item),
        ]
        document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/v1/score"]["post"]["requestBody"]["content"]
    jsonschema_rs.validator_for(content["application/json"]["schema"]).validate(in_json)
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json()["items"][0]["results"]["geneval"]["score"] == 0.0
