"""CLIPScore (Hessel et al., 2021, arXiv:2104.08718): the clipped cosine of image and text embedding."""

from collections.abc import Sequence

from reward_api import Item, Score
from reward_services.clip import ClipScorer

WEIGHTS = {"hessel": 2.5, "torchmetrics": 100.0}


class ClipScoreScorer(ClipScorer):
    """w max(cos, 0) with w = 2.5 as in the paper, or with ``convention="torchmetrics"`` w = 100.

    The prompt is taken as it is; the paper's own runs put "A photo depicts" before it.
    """

    name = "clipscore"
    low = 0.0

    def __init__(
        self, model: str = "", processor: str = "", device: str = "", dtype: str = "", convention: str = "hessel"
    ) -> None:
        super().__init__(model, processor, device, dtype)
        if convention not in WEIGHTS:
            raise ValueError(f"convention={convention!r}: must be one of {', '.join(WEIGHTS)}")
        self._weight = self.high = WEIGHTS[convention]
        self.meaning = f"{self._weight:g} max(cosine of image and text embedding, 0)"
        self.version = f"{self.version}+{convention}"

    def score(self, batch: Sequence[Item]) -> list[Score]:
        """Scores with details {"cosine"}."""
        cosine_B = self.clip.cosines([item.image for item in batch], [item.prompt for item in batch])
        return [Score(self._weight * max(cosine, 0.0), {"cosine": cosine}) for cosine in cosine_B.tolist()]
