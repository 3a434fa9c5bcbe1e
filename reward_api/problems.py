"""Faults of a whole request (RFC 9457), on both sides of the wire."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reward_api.contract import ErrorCode


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem+json document; `extra` holds members such as `item`, the index of the item at fault."""

    status: int
    title: str
    detail: str
    type: str = "about:blank"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The members as they are sent."""
        members = {"type": self.type, "title": self.title, "status": self.status, "detail": self.detail}
        return {**self.extra, **members}


class EnvelopeError(Exception):
    """Raised by a server's parsing or admission: the request as a whole is refused."""

    def __init__(
        self, status: int, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(f"{status} {title}: {detail}")
        self.problem = Problem(status, title, detail, extra=extra)
        self.headers = dict(headers or {})


def missing_rewards(index: int, known: Iterable[str]) -> EnvelopeError:
    """The refusal of a request whose item `index` does not say by which rewards it is to be scored."""
    detail = f"item {index} names no rewards; served here: {', '.join(sorted(known))}"
    return EnvelopeError(422, "Missing rewards", detail, code="missing_rewards", item=index)


def unknown_reward(index: int, name: str, known: Iterable[str]) -> EnvelopeError:
    """The refusal of a request whose item `index` asks for a reward nobody serves here."""
    detail = f"item {index} asks for reward {name!r}; served here: {', '.join(sorted(known)) or 'none'}"
    return EnvelopeError(422, "Unknown reward", detail, code=ErrorCode.UNKNOWN_REWARD, item=index, reward=name)


class RewardUnavailable(Exception):
    """The service could not be reached, or not in time, after the allowed attempts."""


class RewardRejected(Exception):
    """The service refused the request; sending it again would change nothing."""

    def __init__(self, url: str, problem: Problem) -> None:
        super().__init__(f"{url} refused the request: {problem.status} {problem.title}: {problem.detail}")
        self.problem = problem
