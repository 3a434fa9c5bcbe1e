"""Equal items share one score: those under way at the same time, and those scored lately.

Pure state, no tasks. Keys are those of `gateway.content`.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import msgspec

from gateway.content import fingerprint
from reward_api import Item, Score

H = TypeVar("H")
_ENTRY_BYTES = 200  # key, score and the dictionary's own memory


class Mark(NamedTuple):
    """Under which an item is looked for. Different marks: not to be scored as one."""

    fingerprint: int
    deterministic: bool


def mark_of(item: Item, deterministic: bool) -> Mark:
    return Mark(fingerprint(item), deterministic)


@dataclass(slots=True)
class _Place(Generic[H]):
    item: Item
    holder: H
    key: bytes | None = None


class UnderWay(Generic[H]):
    """Holders of items that have no answer yet, found by the content of the item.

    Only items whose mark has been seen are hashed, which in a training run is none of them.
    """

    def __init__(self, key: Callable[[Item], bytes]) -> None:
        self._key = key
        self._places: dict[Mark, list[_Place[H]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    def find(self, item: Item, mark: Mark) -> H | None:
        """Who holds an equal item that is scored in the same way."""
        places = self._places.get(mark)
        if places is None:
            return None
        wanted = self._key(item)
        for place in places:
            place.key = place.key or self._key(place.item)
            if place.key == wanted:
                return place.holder
        return None

    def add(self, item: Item, mark: Mark, holder: H) -> None:
        self._places.setdefault(mark, []).append(_Place(item, holder))

    def remove(self, mark: Mark, holder: H) -> None:
        """Harmless when it is not there."""
        left = [place for place in self._places.get(mark, ()) if place.holder is not holder]
        if left:
            self._places[mark] = left
        else:
            self._places.pop(mark, None)


class ResultCache:
    """The scores last used, at most `max_entries` of them and about `max_bytes` of memory. Errors are not kept."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes = 0
        self._scores: OrderedDict[bytes, tuple[Score, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, key: bytes) -> Score | None:
        if key not in self._scores:
            return None
        self._scores.move_to_end(key)
        return self._scores[key][0]

    def put(self, key: bytes, score: Score) -> None:
        size_bytes = _ENTRY_BYTES + len(msgspec.json.encode(score.details))
        if key in self._scores:
            self.bytes -= self._scores.pop(key)[1]
        self._scores[key] = score, size_bytes
        self.bytes += size_bytes
        while len(self._scores) > self.max_entries or self.bytes > self.max_bytes:
            _, (_, dropped_bytes) = self._scores.popitem(last=False)
            self.bytes -= dropped_bytes
