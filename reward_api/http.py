"""The contract over Starlette: requests into items, outcomes and faults into responses. For servers only."""

import asyncio
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from reward_api.contract import Item, ItemError, Outcome
from reward_api.correlation import HEADER, RequestContext
from reward_api.limits import Limits
from reward_api.listening import serve
from reward_api.openapi import SCORE_OPENAPI
from reward_api.problems import EnvelopeError, Problem
from reward_api.wire import (
    Keep,
    ScoreRequest,
    decode_request,
    encode_response,
    is_msgpack,
    read_json,
    read_request,
    status_of,
)

__all__ = [
    "SCORE_OPENAPI",
    "ParsedRequest",
    "ScoringApp",
    "Tokens",
    "check_token",
    "install_middleware",
    "parse_score_request",
    "problem",
    "score_response",
    "serve",
    "unless_hung_up",
]

PROBLEM_JSON = "application/problem+json"
_FIELDS = {"image", "prompt", "metadata", "rewards", "deterministic"}
T = TypeVar("T")

Endpoint = Callable[[Request], Awaitable[Response]]

Tokens = str | Mapping[str, str] | None
"""What callers must show: one token, or one for each client by name; None asks for nothing."""


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request ready to be scored; `rewards[i]` are those asked of `items[i]`, also where it is an error.

    `deadline` is the time the caller still gives, in seconds from now, or None.
    """

    items: list[Item | ItemError]
    deterministic: bool
    deadline: float | None
    rewards: list[tuple[str, ...]]


async def parse_score_request(request: Request, limits: Limits, keep: Keep | None = None) -> ParsedRequest:
    """Read a `POST /v1/score` in any of its encodings. Raises EnvelopeError (4xx).

    `keep`, see `read_request`, runs in a thread of its own.
    """
    clock = asyncio.get_running_loop().time
    started = clock()
    allowed = _read_deadline(request)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise EnvelopeError(415, "Unsupported content encoding", f"Content-Encoding {encoding}: send the body as it is")
    content_type = request.headers.get("content-type", "")
    try:
        async with asyncio.timeout(limits.body_seconds):
            if content_type.lower().startswith("multipart/form-data"):
                decoded = await _read_form(request, limits, keep)
            else:
                body = await _Body(request, limits.max_body_bytes).whole()
                decoded = await _decode(content_type, body, limits, keep)
    except TimeoutError:
        detail = f"the body did not arrive within {limits.body_seconds:g} s"
        raise EnvelopeError(408, "Request timeout", detail) from None
    deadline = None if allowed is None else allowed - (clock() - started)
    return ParsedRequest(decoded.items, decoded.deterministic, deadline, decoded.rewards)


def score_response(outcomes: Sequence[Mapping[str, Outcome]], accept: str = "") -> Response:
    """200, or 422, 503, 504 where every outcome is an error; the items are inside in any case."""
    body, media_type = encode_response(outcomes, accept)
    return Response(body, status_of(outcomes), media_type=media_type)


def problem(
    status: int, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any
) -> Response:
    """A problem+json response (RFC 9457); `extra` members such as `item` are sent beside the standard ones."""
    document = Problem(status, title, detail, extra=extra).document()
    return Response(msgspec.json.encode(document), status, headers=headers, media_type=PROBLEM_JSON)


class ScoringApp(FastAPI):
    """FastAPI, except that POST /v1/score goes straight to the endpoint named to `install_middleware`.

    Its layers of middleware, routing and exit stacks take longer than reading a small request, and a score needs none
    of them. The route stands in the app all the same, for its OpenAPI.
    """

    straight: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scoring = scope["type"] == "http" and scope["path"] == "/v1/score" and scope["method"] == "POST"
        if scoring and self.straight is not None:
            await self.straight(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def install_middleware(app: ScoringApp, score: Endpoint) -> None:
    """Let `app` answer EnvelopeError, framework errors and crashes as problem+json, each with its request's id.

    `score` is the endpoint of POST /v1/score.
    """

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return problem(error.status_code, error.detail, detail, headers=error.headers)

    app.add_middleware(RequestContext)
    app.add_exception_handler(EnvelopeError, _on_envelope_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_hang_up)
    app.add_exception_handler(Exception, _on_crash)
    app.straight = RequestContext(_Straight(score))


class _Straight:
    """An endpoint as an app, with the handling of exceptions that the framework would add."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await self.endpoint(request)
        except EnvelopeError as error:
            response = await _on_envelope_error(request, error)
        except ClientDisconnect as error:
            response = await _on_hang_up(request, error)
        except Exception as error:
            await (await _on_crash(request, error))(scope, receive, send)
            raise  # for the server's log
        await response(scope, receive, send)


async def _on_envelope_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EnvelopeError)
    fault = error.problem
    return problem(fault.status, fault.title, fault.detail, headers=error.headers, **fault.extra)


async def _on_crash(request: Request, error: Exception) -> Response:
    headers = {HEADER: request.scope.get("request_id", "")}  # the framework answers a crash outside of all middleware
    return problem(500, "Internal error", "the server failed; its log says why", headers=headers)


async def _on_hang_up(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def check_token(request: Request, token: Tokens) -> str:
    """The name of the token the request carries, "" if it has none.

    Raises EnvelopeError 401 unless it carries `token`, or one of them; None lets everybody in.
    """
    if token is None:
        return ""
    sent = request.headers.get("authorization", "").encode()
    named = {"": token} if isinstance(token, str) else token
    matching = [name for name, each in named.items() if hmac.compare_digest(sent, f"Bearer {each}".encode())]
    if not matching:
        detail = "send the header Authorization: Bearer TOKEN"
        raise EnvelopeError(401, "Unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
    return matching[0]


async def unless_hung_up(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, but cancel it and raise ClientDisconnect when the client hangs up. The body must be read."""
    task = asyncio.current_task()
    assert task is not None
    hung_up = False

    async def watch() -> None:
        nonlocal hung_up
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if hung_up and task.uncancel() == 0:  # nobody else has cancelled
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()


async def _decode(content_type: str, body: bytes, limits: Limits, keep: Keep | None) -> ScoreRequest:
    if is_msgpack(content_type) and keep is None:
        return decode_request(content_type, body, limits)
    # Image files take milliseconds each to decode; other requests go on meanwhile.
    return await asyncio.to_thread(decode_request, content_type, body, limits, keep)


class _Body:
    """The body of a request; raises EnvelopeError 413 before more than `limit` bytes are held.

    Counted here because the framework's own limit answers in plain text.
    """

    def __init__(self, request: Request, limit: int) -> None:
        self._receive = request.receive
        self._limit = limit
        self._received = 0
        self._more = True
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal():
            self._check(int(declared))

    async def whole(self) -> bytes:
        parts = []
        while self._more:
            parts.append(await self._next())
        return b"".join(parts)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while self._more:
            yield await self._next()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        self._more = message.get("more_body", False)
        self._received += len(chunk)
        self._check(self._received)
        return chunk

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._limit:
            raise EnvelopeError(413, "Request too large", f"the body exceeds {self._limit} bytes")


async def _read_form(request: Request, limits: Limits, keep: Keep | None) -> ScoreRequest:
    body = _Body(request, limits.max_body_bytes).chunks()
    parser = MultiPartParser(
        request.headers, body, max_files=limits.max_items, max_fields=4 * limits.max_items, max_part_size=2**20
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise EnvelopeError(400, "Malformed request", f"the form cannot be read: {error.message}") from None
    try:
        document = await _form_document(form)
    finally:
        await form.close()
    return await asyncio.to_thread(read_request, document, limits, keep)


async def _form_document(form: FormData) -> dict[str, Any]:
    """The envelope of a form: one item an image; a field is given once for all images or once for each."""
    unknown = sorted(set(form) - _FIELDS)
    if unknown:
        detail = f"unknown form fields: {', '.join(unknown)[:200]}; known: {', '.join(sorted(_FIELDS))}"
        raise EnvelopeError(422, "Unknown field", detail)
    images = [await part.read() if isinstance(part, UploadFile) else None for part in form.getlist("image")]
    if not images:
        raise EnvelopeError(422, "Invalid request", "the form has no field image; send -F image=@FILE")
    prompts = _texts(form, "prompt", len(images))
    metadata = [_parse_metadata(text) for text in _texts(form, "metadata", len(images))]
    rewards = [_split(text) for text in _texts(form, "rewards", len(images))]
    deterministic = _texts(form, "deterministic", 1)[0] or "false"
    if deterministic not in {"true", "false"}:
        raise EnvelopeError(422, "Invalid request", "deterministic must be true or false")
    rows = zip(images, prompts, metadata, rewards, strict=True)
    items = [{"image": i, "prompt": p, "metadata": m, "rewards": r} for i, p, m, r in rows]
    return {"items": items, "deterministic": deterministic == "true"}


def _texts(form: FormData, name: str, count: int) -> list[str | None]:
    values = form.getlist(name)
    if any(isinstance(value, UploadFile) for value in values):
        raise EnvelopeError(422, "Invalid request", f"field {name} must be text, not a file")
    if len(values) not in {0, 1, count}:
        detail = f"{count} images but {len(values)} fields {name}; give one for all or one for each"
        raise EnvelopeError(422, "Invalid request", detail)
    texts: list[str | None] = [str(value) for value in values] if values else [None]
    return texts if len(texts) == count else texts * count


def _parse_metadata(text: str | None) -> Any:
    """The metadata of a form field; text that is no JSON stays a text, which the item's check refuses."""
    if text is None or not text.strip():
        return None
    try:
        return read_json(text)
    except (ValueError, RecursionError):
        return text


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _read_deadline(request: Request) -> float | None:
    """Seconds left by the header X-Deadline-Ms."""
    text = request.headers.get("x-deadline-ms")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise EnvelopeError(422, "Invalid header", f"X-Deadline-Ms must be whole milliseconds, got {text[:40]!r}")
    return int(text) / 1000
