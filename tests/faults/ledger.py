"""Who was asked and what was answered: nothing lost, nothing wrong, nothing twice."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from reward_api import Item, ItemError, Outcome, Score


class Ledger:
    """Hands out items with an id in their pixels and keeps every answer by id."""

    def __init__(self) -> None:
        self.right: dict[int, float] = {}
        self.answers: defaultdict[int, list[Outcome]] = defaultdict(list)

    def items(self, count: int, *, size: int = 16, prompt: str = "a prompt") -> list[Item]:
        """Items never handed out before; the rest of their pixels is noise."""
        items = []
        for number in range(len(self.right), len(self.right) + count):
            pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
            pixels[0, 0] = number % 256, number // 256 % 256, number // 65536
            self.right[number] = float(zlib.crc32(pixels.tobytes()))
            items.append(Item(pixels, prompt, rewards=("fake",)))
        return items

    def enter(self, items: Sequence[Item], outcomes: Sequence[dict[str, Outcome]]) -> None:
        """Notes the answers to `items`."""
        for item, outcome in zip(items, outcomes, strict=True):
            assert list(outcome) == ["fake"]
            self.answers[number_of(item)].append(outcome["fake"])

    def check(self, *, errors: Collection[str] = (), excused: Collection[int] = ()) -> Counter[str]:
        """Counts the kinds of answer.

        Fails unless each id has one answer, the right score or an error of `errors`. `excused` ids may have none.
        """
        kinds: Counter[str] = Counter()
        for number, right in self.right.items():
            answers = self.answers.get(number, [])
            assert len(answers) == 1 or (not answers and number in excused), f"item {number} has answers {answers}"
            for answer in answers:
                if isinstance(answer, Score):
                    assert answer.score == right, f"item {number}: {answer.score}, right is {right}"
                    kinds["score"] += 1
                else:
                    assert isinstance(answer, ItemError)
                    assert answer.code in errors, f"item {number}: {answer}"
                    kinds[answer.code] += 1
        return kinds


def number_of(item: Item) -> int:
    low, middle, high = map(int, item.image[0, 0])
    return low + 256 * middle + 65536 * high
