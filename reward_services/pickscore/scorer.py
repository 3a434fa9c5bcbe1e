"""PickScore's formula over any CLIP model: cosine of image and text embedding times exp(logit_scale)."""

from collections.abc import Sequence
from typing import Any

import torch

from reward_api import Item, Score

TEXT_TOKENS = 77
RL_DIVISOR = 26.0


class PickScoreScorer:
    """Scores with the CLIPModel in a directory or on the hub, such as yuvalkirstain/PickScore_v1.

    `processor` names where tokenizer and image processor come from, by default the model itself. `device` is a torch
    device, by default cuda where there is one. The score is raw (PickScore_v1: about 17 to 24); details also give it
    divided by 26, as the paper's RL reward takes it.
    """

    name = "pickscore"
    meaning = "cosine of image and text embedding times exp(logit_scale); PickScore_v1 gives about 17 to 24"
    low: float | None = None
    high: float | None = None
    metadata = "none"
    batch_limit = 16
    # Matrix products of another batch size may round differently.
    batch_invariant = False

    def __init__(self, model: str, processor: str = "", device: str = "") -> None:
        self.model = model
        self.processor = processor or model
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.version = model.rstrip("/").rsplit("/", 1)[-1]
        self._loaded: tuple[Any, Any, Any] | None = None

    def warm_up(self) -> None:
        """Load the model. Raises OSError if directory or hub id do not hold one."""
        self._load()

    def score(self, batch: Sequence[Item]) -> list[Score]:
        """Raw scores with details {"cosine", "raw", "score_26"}, all finite."""
        model, tokenizer, image_processor = self._load()
        # transformers copies, but torch would warn of arrays that cannot be written to.
        images = [item.image.copy() for item in batch]
        pixels = image_processor(images=images, return_tensors="pt", input_data_format="channels_last")
        text = tokenizer(
            [item.prompt for item in batch],
            padding="max_length",
            truncation=True,
            max_length=min(TEXT_TOKENS, model.config.text_config.max_position_embeddings),
            return_tensors="pt",
        )
        with torch.inference_mode():
            image_BD = model.get_image_features(pixel_values=pixels["pixel_values"].to(self.device)).pooler_output
            text_BD = model.get_text_features(
                input_ids=text["input_ids"].to(self.device), attention_mask=text["attention_mask"].to(self.device)
            ).pooler_output
            cosine_B = torch.cosine_similarity(image_BD.float(), text_BD.float(), dim=-1)
            raw_B = cosine_B * model.logit_scale.float().exp()
        return [
            Score(raw, {"cosine": cosine, "raw": raw, "score_26": raw / RL_DIVISOR})
            for raw, cosine in zip(raw_B.tolist(), cosine_B.tolist(), strict=True)
        ]

    def _load(self) -> tuple[Any, Any, Any]:
        if self._loaded is None:
            from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

            model = CLIPModel.from_pretrained(self.model).eval().to(self.device)
            tokenizer = CLIPTokenizer.from_pretrained(self.processor)
            self._loaded = model, tokenizer, CLIPImageProcessorPil.from_pretrained(self.processor)
        return self._loaded
