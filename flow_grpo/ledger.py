"""The results file of ``flow-grpo score``: a line an item, appended as it is scored, and safe to go on with."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reward_api import ItemError, Outcome
from reward_api.wire import read_results, wire_outcome

_BEGINNING = b'{"digest": "'


class LedgerError(Exception):
    """The results file cannot be used; the message names the file and the line."""


class Ledger:
    """Which items are done, by digest, and where the next results go.

    Opening it mends what an interrupted run left: a half-written last line is cut off, and lines that hold an error
    are taken out, so that those items are scored again. Memory: about 200 bytes an item. Raises LedgerError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._done = self._mend() if path.exists() else set()
            self._file = path.open("ab")
        except OSError as error:
            raise LedgerError(f"{path}: {error.strerror}") from error
        self._found = len(self._done)
        self._unmet = set(self._done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def resumed(self) -> int:
        """Items asked about that an earlier run had scored."""
        return self._found - len(self._unmet)

    def has(self, digest: str) -> bool:
        """Whether an item is done. Asking says that it belongs to the archive."""
        self._unmet.discard(digest)
        return digest in self._done

    def append(self, digest: str, described: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> None:
        """Writes one item's line."""
        results = {name: wire_outcome(outcome) for name, outcome in outcomes.items()}
        self._file.write(json.dumps({"digest": digest, **described, "results": results}).encode("ascii") + b"\n")
        self._done.add(digest)

    def flush(self) -> None:
        """Hands what was written to the system: a killed process loses nothing of it."""
        self._file.flush()

    def set_aside(self) -> int:
        """Moves lines of items that were not asked about into ``FILE.stale``; returns how many. Ends the writing."""
        self._file.close()
        if self._unmet:
            with self.path.with_name(self.path.name + ".stale").open("ab") as stale:
                self._keep(lambda line: line["digest"] not in self._unmet, stale.write)
        return len(self._unmet)

    def results(self) -> Iterator[tuple[dict[str, Any], dict[str, Outcome]]]:
        """Every line with its outcomes, read from the file."""
        for _, line in self._lines():
            yield line, read_results(line["results"])

    def _mend(self) -> set[str]:
        """Digests of the items that are scored, all others taken out of the file."""
        self._cut_half_line()
        done, failed = set(), False
        for _, line in self._lines():
            if _scored(line):
                done.add(line["digest"])
            else:
                failed = True
        if failed:
            self._keep(_scored, lambda _: None)
        return done

    def _cut_half_line(self) -> None:
        end = 0
        with self.path.open("rb") as lines:
            for raw in lines:
                if raw.endswith(b"\n"):
                    end += len(raw)
                elif not (raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw)):
                    raise LedgerError(
                        f"{self.path}: its last line is not the beginning of a result; choose another file"
                    )
        os.truncate(self.path, end)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        with self.path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                try:
                    line = json.loads(raw)
                    known = isinstance(line["digest"], str) and bool(read_results(line["results"]))
                except (ValueError, TypeError, KeyError):
                    known = False
                if not known:
                    raise LedgerError(
                        f"{self.path}, line {number}: is no result of flow-grpo score; choose another file"
                    )
                yield raw, line

    def _keep(self, wanted: Callable[[dict[str, Any]], bool], spare: Callable[[bytes], object]) -> None:
        """Rewrites the file with the wanted lines, aside and then renamed; the others go to ``spare``."""
        aside = self.path.with_name(self.path.name + ".part")
        with aside.open("wb") as kept:
            for raw, line in self._lines():
                (kept.write if wanted(line) else spare)(raw)
        aside.replace(self.path)


def _scored(line: Mapping[str, Any]) -> bool:
    return not any(isinstance(outcome, ItemError) for outcome in read_results(line["results"]).values())
