"""From a request to the batches its items travel in: where an item came from, and work done for several at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reward_api import tracing
from reward_api.correlation import HEADER, joined, request_id

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext


@dataclass(frozen=True, slots=True)
class Origin:
    """The request an item came with: its id, and its span where there is tracing."""

    request_id: str
    span: "SpanContext | None"


def current_origin() -> Origin:
    """The request that the present work is for."""
    return Origin(request_id.get(), tracing.current_span())


@contextmanager
def batch_of(origins: Sequence[Origin], name: str, **attributes: str | int) -> Iterator[None]:
    """Work on a batch of items from `origins`: log lines and `outgoing_headers` name all of them, its span links them.

    `name` and `attributes` are the span's.
    """
    token = request_id.set(joined(origin.request_id for origin in origins))
    try:
        with tracing.batch_span(name, [origin.span for origin in origins], attributes):
            yield
    finally:
        request_id.reset(token)


def outgoing_headers() -> dict[str, str]:
    """What tells a replica whom it works for."""
    own = request_id.get()
    return {**({HEADER: own} if own else {}), **tracing.outgoing_headers()}
