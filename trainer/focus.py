"""Which prompts still teach: a group whose images all earn the same has no advantages, hence no gradient."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MEMORY = 0.5
"""Weight of what was known of a prompt before its newest group."""


class Focus:
    """Draws prompts more often the further apart the rewards inside their groups have been.

    ``share`` in [0, 1): a prompt's weight is (1 - share) + share * spread / mean spread, with the standard deviation
    of its groups' rewards, newest first, as spread. A prompt not drawn yet counts as an average one, and no
    prompt's weight falls to zero: what was solved, or out of reach, is looked at again.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.spreads: dict[str, float] = {}
        """By the prompt's text; the state of this object."""

    def weights(self, texts: Sequence[str]) -> list[float]:
        """Relative chances of these prompts."""
        known = [self.spreads[text] for text in texts if text in self.spreads]
        mean = sum(known) / len(known) if known else 0.0
        if mean == 0.0:
            return [1.0] * len(texts)
        return [1 - self._share + self._share * self.spreads.get(text, mean) / mean for text in texts]

    def learn(self, text: str, rewards_G: NDArray[np.float64]) -> None:
        """Takes note of a group's rewards; NaN is a missing one."""
        known = rewards_G[~np.isnan(rewards_G)]
        if known.size < 2:
            return
        spread = float(known.std())
        self.spreads[text] = MEMORY * self.spreads.get(text, spread) + (1 - MEMORY) * spread
