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


def normalise_groups(reward_SG: NDArray[np.float64], deviation: float | None = None) -> NDArray[np.float64]:
    """(r - mean of group) / (std + eps), population std, of the group or ``deviation`` where given; NaN stays NaN."""
    out = np.full(reward_SG.shape, np.nan)
    for slot, row in enumerate(reward_SG):
        known = ~np.isnan(row)
        if known.any():
            scale = row[known].std() if deviation is None else deviation
            out[slot, known] = (row[known] - row[known].mean()) / (scale + EPS)
    return out


def advantages(
    rewards: Rewards, weights_S: Sequence[Mapping[str, float]], config: AdvantageConfig
) -> NDArray[np.float64]:
    """Advantages (S, G); NaN where the image has no complete reward.

    ``sum``: group-centred weighted sum of raw rewards over the group's or the epoch's standard deviation.
    ``normalised``: each reward is normalised inside its group, then summed with weights, then brought to unit spread
    over the epoch, so that no reward dominates by its scale.
    """
    total = weighted_sum(rewards, weights_S)
    if config.aggregation == "sum":
        deviation = _deviation(total) if config.statistics == "global" else None
        return normalise_groups(total, deviation)
    # An image that misses one reward leaves the statistics of its group's other rewards too.
    complete = {name: np.where(np.isnan(total), np.nan, values) for name, values in rewards.items()}
    normalised = {name: normalise_groups(values) for name, values in complete.items()}
    total = weighted_sum(normalised, weights_S)
    known = total[~np.isnan(total)]
    if not known.size:
        return total
    return np.asarray((total - known.mean()) / (known.std() + EPS))


def _deviation(total_SG: NDArray[np.float64]) -> float:
    known = total_SG[~np.isnan(total_SG)]
    return float(known.std()) if known.size else 0.0


def zero_variance_fraction(reward_SG: NDArray[np.float64]) -> float:
    """Share of groups whose known rewards are all equal: they carry no signal."""
    flat = [bool(np.ptp(row[~np.isnan(row)]) < 1e-9) if (~np.isnan(row)).any() else True for row in reward_SG]
    return float(np.mean(flat))
