"""Items on their way: who waits for them, and the batches that are out at a replica."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.queue import Batch, Entry
from gateway.replicas import Replica
from gateway.sharing import Mark
from reward_api import Item, Outcome
from reward_api.origins import Origin, current_origin


@dataclass(slots=True, eq=False)
class Pending:
    """An item on its way to one reward and everybody who waits for its answer; `origin` is the first of them.

    `mark` is what equal items find it by, None where they shall not.
    """

    item: Item
    mark: Mark | None = None
    origin: Origin = field(default_factory=current_origin)
    tickets: list["Ticket"] = field(default_factory=list)
    flight: "Flight | None" = None
    joined_in_flight: bool = False


@dataclass(slots=True, eq=False)
class Ticket:
    """One caller's claim to the answer; `entry` is None where the answer was known at once."""

    entry: Entry[Pending] | None = None
    outcome: "asyncio.Future[Outcome]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(slots=True, eq=False)
class Flight:
    """A batch that is out: at one replica, or at two of which the first answer counts."""

    batch: Batch[Pending]
    started: float
    attempts: dict[Replica, "asyncio.Task[None]"] = field(default_factory=dict)
    hedge: asyncio.TimerHandle | None = None

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for any of it."""
        return all(entry.gone for entry in self.batch.entries)

    def take_off(self) -> None:
        """Its entries are with it from now on."""
        for entry in self.batch.entries:
            entry.payload.flight = self
            entry.payload.joined_in_flight = False

    def land(self) -> None:
        """It is over: no second try any more, and what still runs is called back."""
        if self.hedge is not None:
            self.hedge.cancel()
        for entry in self.batch.entries:
            entry.payload.flight = None
        for replica in list(self.attempts):
            self.call_back(replica)

    def call_back(self, replica: Replica) -> None:
        """Cancels the attempt at `replica`; its answer will not be looked at."""
        self.attempts.pop(replica).cancel()


def settle(entries: Iterable[Entry[Pending]], outcome: Outcome) -> None:
    """Gives everybody who waits for `entries` the same answer."""
    for entry in entries:
        for ticket in entry.payload.tickets:
            if not ticket.outcome.done():
                ticket.outcome.set_result(outcome)
        entry.payload.tickets.clear()
