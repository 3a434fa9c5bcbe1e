"""Two evaluations of the same prompts and noises, compared image by image. Imports without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RESAMPLES = 10_000
_CHUNK = 500


@dataclass(frozen=True)
class PairedDifference:
    """Mean of after - before with its 95 % bootstrap interval, in the reward's own unit.

    ``deviation`` is the standard deviation of the results before, over the same pairs.
    """

    mean: float
    low: float
    high: float
    deviation: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] over {self.pairs} pairs"


def paired_difference(before: Sequence[float | None], after: Sequence[float | None]) -> PairedDifference | None:
    """Of results of the same images in the same order; a pair with a missing result is left out.

    None where fewer than two pairs remain. The interval is the percentile bootstrap's over pairs, always the same for
    the same numbers. Raises ValueError if the lengths differ.
    """
    pairs = np.array(
        [(old, new) for old, new in zip(before, after, strict=True) if old is not None and new is not None]
    )
    if len(pairs) < 2:
        return None
    difference_N = pairs[:, 1] - pairs[:, 0]
    rng = np.random.default_rng(0)
    means = np.concatenate(
        [
            difference_N[rng.integers(len(difference_N), size=(_CHUNK, len(difference_N)))].mean(axis=1)
            for _ in range(_RESAMPLES // _CHUNK)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return PairedDifference(
        float(difference_N.mean()), float(low), float(high), float(pairs[:, 0].std(ddof=1)), len(pairs)
    )


def paired_rewards(before: dict[str, Any], after: dict[str, Any]) -> dict[str, PairedDifference]:
    """The differences of all rewards of two saved evaluations (``Evaluation.save``).

    Empty if they are not of the same prompts: there is nothing to pair then.
    """
    old, new = before["items"], after["items"]
    if [item["prompt"] for item in old] != [item["prompt"] for item in new]:
        return {}
    names = [name for name in after["rewards"] if name in before["rewards"]]
    differences = {
        name: paired_difference([item["scores"].get(name) for item in old], [item["scores"].get(name) for item in new])
        for name in names
    }
    return {name: difference for name, difference in differences.items() if difference is not None}


def paired_diversity(before: dict[str, Any], after: dict[str, Any]) -> PairedDifference | None:
    """The difference of the diversity of two saved evaluations, paired by prompt; None where one of them has none."""
    old, new = before.get("diversity", {}), after.get("diversity", {})
    prompts = [prompt for prompt in old if prompt in new]
    return paired_difference([old[prompt] for prompt in prompts], [new[prompt] for prompt in prompts])
