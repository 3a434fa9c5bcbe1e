"""Advantages of an epoch's images from their rewards.

Arrays are (S, G): S groups by their slot in the epoch, G images each. NaN marks a score that is *missing* (asked
for, but the scorer failed); an image with a missing score leaves its group's statistics and the loss. A reward that
was not asked of a group is absent from that group's weights, which is not the same.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.config import AdvantageConfig

EPS = 1e-4

Rewards = Mapping[str, NDArray[np.float64]]


def weighted_sum(rewards: Rewards, weights_S: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """Total reward (S, G): each slot sums the rewards it asked for; NaN where any of them is missing."""
    shape = next(iter(rewards.values())).shape
    total = np.zeros(shape)
    for slot, weights in enumerate(weights_S):
        for name, weight in weights.items():
            total[slot] += weight * rewards[name][slot]
    return total


def normalise_groups(reward_SG: NDArray[np.float64], deviation_S: Sequence[float] | None = None) -> NDArray[np.float64]:
    """(r - mean of group) / (std + eps), population std, of the group or ``deviation_S`` where given; NaN stays NaN."""
    out = np.full(reward_SG.shape, np.nan)
    for slot, row in enumerate(reward_SG):
        known = ~np.isnan(row)
        if known.any():
            scale = row[known].std() if deviation_S is None else deviation_S[slot]
            out[slot, known] = (row[known] - row[known].mean()) / (scale + EPS)
    return out


def advantages(
    rewards: Rewards, weights_S: Sequence[Mapping[str, float]], config: AdvantageConfig
) -> NDArray[np.float64]:
    """Advantages (S, G); NaN where the image has no complete reward.

    ``sum``: group-centred weighted sum of raw rewards over the standard deviation of the group, or of all the epoch's
    images that are scored by the same rewards with the same weights: others are on another scale.
    ``normalised``: each reward is normalised inside its group, then summed with weights, then brought to unit spread
    over the epoch, so that no reward dominates by its scale.
    """
    total = weighted_sum(rewards, weights_S)
    if config.aggregation == "sum":
        return normalise_groups(total, _deviations(total, weights_S) if config.statistics == "global" else None)
    # An image that misses one reward leaves the statistics of its group's other rewards too.
    complete = {name: np.where(np.isnan(total), np.nan, values) for name, values in rewards.items()}
    normalised = {name: normalise_groups(values) for name, values in complete.items()}
    total = weighted_sum(normalised, weights_S)
    known = total[~np.isnan(total)]
    if not known.size:
        return total
    return np.asarray((total - known.mean()) / (known.std() + EPS))


def _deviations(total_SG: NDArray[np.float64], weights_S: Sequence[Mapping[str, float]]) -> list[float]:
    """Each slot's: of the known totals of all slots with its weights; 0 where none is known."""
    kinds = [frozenset(weights.items()) for weights in weights_S]
    found: dict[frozenset[tuple[str, float]], float] = {}
    for kind in set(kinds):
        alike = total_SG[[other == kind for other in kinds]]
        known = alike[~np.isnan(alike)]
        found[kind] = float(known.std()) if known.size else 0.0
    return [found[kind] for kind in kinds]


def zero_variance_fraction(reward_SG: NDArray[np.float64]) -> float:
    """Share of groups whose known rewards are all equal: they carry no signal."""
    flat = [bool(np.ptp(row[~np.isnan(row)]) < 1e-9) if (~np.isnan(row)).any() else True for row in reward_SG]
    return float(np.mean(flat))
