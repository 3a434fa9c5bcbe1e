"""PickScore's formula over any CLIP model: cosine of image and text embedding times exp(logit_scale)."""

from collections.abc import Sequence

from reward_api import Item, Score
from reward_services.clip import CLIP_H, ClipScorer

RL_DIVISOR = 26.0


class PickScoreScorer(ClipScorer):
    """Scores with PickScore_v1, the tiny world's taste (the default) or any other CLIPModel.

    The score is raw (PickScore_v1: about 17 to 24); details also give it divided by 26, as the paper's RL reward
    takes it.
    """

    name = "pickscore"
    meaning = "cosine of image and text embedding times exp(logit_scale); PickScore_v1 gives about 17 to 24"
    default_model = "tiny_world:weights/taste"
    fallback_processor = CLIP_H

    def score(self, batch: Sequence[Item]) -> list[Score]:
        """Raw scores with details {"cosine", "raw", "score_26"}, all finite."""
        cosine_B = self.clip.cosines([item.image for item in batch], [item.prompt for item in batch])
        raw_B = cosine_B * self.clip.scale
        return [
            Score(raw, {"cosine": cosine, "raw": raw, "score_26": raw / RL_DIVISOR})
            for raw, cosine in zip(raw_B.tolist(), cosine_B.tolist(), strict=True)
        ]
