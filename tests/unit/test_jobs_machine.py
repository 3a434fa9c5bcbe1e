"""Messages lost, repeated and late, workers that die or come back: each place ends once, rightly, and for good."""

import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from job_tables import VERSIONS, Tables, broken, right_outcomes, right_score, stored

from gateway.jobs import leases, ledger
from gateway.jobs.job import LIVE, Claim, JobState, Message, StoredItem
from gateway.jobs.leases import Place
from reward_api import ItemError, Outcome

pytestmark = pytest.mark.unit

MEMORY = Path("/dev/shm")
FAILED = ItemError("scorer_failed", "for good")
ITEMS = st.lists(
    st.one_of(
        st.builds(stored, st.integers(0, 5), st.sampled_from(["count", "style"])),
        st.builds(lambda number: stored(number, "count", "style"), st.integers(0, 5)),
        st.builds(broken),
    ),
    min_size=1,
    max_size=6,
)


class JobsUnderFire(RuleBasedStateMachine):
    """Messages and claims are never forgotten here, so that any of them may act long after its time."""

    @initialize()
    def open(self) -> None:
        # Names decide which of two chunks comes first: drawn by chance, a repeated example would not repeat itself.
        numbers = itertools.count(1)
        self.names = ExitStack()
        for module in (leases, ledger):
            self.names.enter_context(patch.object(module, "uuid4", lambda: UUID(int=next(numbers))))
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.tables = Tables(f"sqlite:///{Path(self.folder.name) / 'jobs.sqlite'}", queued_chunks=3)
        self.now = 0.0
        self.jobs: dict[str, list[StoredItem]] = {}
        self.messages: list[Message] = []
        self.claims: list[Claim] = []
        self.seen: dict[tuple[str, Place], Outcome] = {}
        self.cancelled: set[str] = set()

    @rule(items=ITEMS)
    @precondition(lambda self: len(self.jobs) < 3)
    def add(self, items: list[StoredItem]) -> None:
        self.jobs[self.tables.add(items, self.now)] = items

    @rule(seconds=st.sampled_from([1.0, 30.0, 101.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Any message ever sent, for the first time or once more; whoever takes it may die at once."""
        self.messages += self.tables.leases.due(self.now)
        if not self.messages:
            return
        message = data.draw(st.sampled_from(self.messages))
        claim = self.tables.leases.claim(message.chunk_id, message.token, self.now)
        if claim is not None:
            self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        """Any claim, fresh or stale, with all or a part of its outcomes, some of them errors."""
        claim = data.draw(st.sampled_from(self.claims))
        outcomes = right_outcomes(claim)
        for place in list(outcomes):
            match data.draw(st.sampled_from(["scored", "failed", "open"])):
                case "failed":
                    outcomes[place] = FAILED
                case "open":
                    del outcomes[place]
        self.tables.leases.record(claim, outcomes, VERSIONS, self.now, again_in_s=5)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        if self.tables.ledger.cancel(job, self.now):
            self.cancelled.add(job)

    @invariant()
    def every_end_is_right_and_stays(self) -> None:
        found: dict[tuple[str, Place], Outcome] = {}
        for job, items in self.jobs.items():
            for number, results in self.tables.ledger.results(job, 0)[0]:
                for reward, outcome in results.items():
                    item = items[number]
                    assert reward in item.rewards
                    assert (
                        outcome == item.error if item.error else outcome in (FAILED, right_score(item.content, reward))
                    )
                    found[job, (number, reward)] = outcome
        assert all(found.get(place) == outcome for place, outcome in self.seen.items())
        self.seen = found

    @invariant()
    def states_and_counts_agree(self) -> None:
        for job, items in self.jobs.items():
            progress = self.tables.ledger.progress(job)
            assert progress is not None
            total = sum(len(item.rewards) for item in items)
            errors = sum(len(item.rewards) for item in items if item.error)
            assert progress.scored + progress.failed + progress.pending == total
            assert progress.failed >= errors
            assert (progress.state == JobState.CANCELLED) == (job in self.cancelled)
            assert (progress.finished_at is None) == (progress.state in LIVE)
            if progress.state not in LIVE and job not in self.cancelled:
                assert progress.pending == 0

    def teardown(self) -> None:
        """With one worker that does not die, everything comes to its end."""
        if not hasattr(self, "tables"):
            return
        for _ in range(40):
            if not any(self.tables.ledger.counts()[0][state] for state in LIVE):
                break
            self.now += 101
            for claim in self.tables.claim_all(self.now):
                self.tables.score(claim, self.now)
        for job in self.jobs:
            progress = self.tables.ledger.progress(job)
            assert progress is not None
            if job in self.cancelled:
                assert progress.state == JobState.CANCELLED
                continue
            assert (progress.state, progress.pending) == (JobState.DONE, 0)
        self.tables.close()
        self.names.close()
        self.folder.cleanup()


TestJobsUnderFire = JobsUnderFire.TestCase
TestJobsUnderFire.settings = settings(max_examples=25, stateful_step_count=30)
