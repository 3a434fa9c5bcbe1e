"""What rewards over CLIP share: loading, image and text embeddings, the scorer around them.

Shapes: B images or texts, D embedding channels.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reward_api import Item, Outcome
from reward_services.devices import chosen_device, chosen_dtype
from reward_services.weights import WeightsError, fetch, first_line
from tiny_world import resolve

CLIP_L = "openai/clip-vit-large-patch14"
CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
TEXT_TOKENS = 77
_LONGEST = 16  # sides in a longer ratio are cropped before they are resized


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A CLIPModel with its tokenizer and image processor; embeddings come out in float32, with length 1."""

    model: Any
    tokenizer: Any
    image_processor: Any
    scale: float
    """exp(logit_scale), taken before the model was cast: half precision would move it by up to .2 %."""

    @property
    def image_size(self) -> int:
        """The side of the square the model sees, in pixels."""
        return int(self.model.config.vision_config.image_size)

    def image_embeddings(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """(B, D) of images (H, W, 3), each resized by its shorter side and cropped to the centre."""
        pixels = self.image_processor(
            images=[_central(image) for image in images], return_tensors="pt", input_data_format="channels_last"
        )["pixel_values"]
        with torch.inference_mode():
            pixels = pixels.to(self.model.device, self.model.dtype)
            image_BD = self.model.get_image_features(pixel_values=pixels).pooler_output
        return torch.nn.functional.normalize(image_BD.float(), dim=-1)

    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, D); a text is cut at 77 tokens, start and end included. Equal texts are encoded once."""
        distinct = list(dict.fromkeys(texts))
        tokens = self.tokenizer(
            distinct,
            padding=True,
            truncation=True,
            max_length=min(TEXT_TOKENS, self.model.config.text_config.max_position_embeddings),
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            text_BD = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
        text_BD = torch.nn.functional.normalize(text_BD.float(), dim=-1)
        return text_BD[[distinct.index(text) for text in texts]]

    def cosines(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> torch.Tensor:
        """(B,) cosine of each image with its own text."""
        return (self.image_embeddings(images) * self.text_embeddings(texts)).sum(-1)


def load_clip(source: str, *, processor: str = "", fallback: str = "", device: str = "", dtype: str = "") -> Clip:
    """The CLIPModel of a directory, a hub id or ``tiny_world:FOLDER``.

    Tokenizer and image processor come from `processor`, by default from `source`, or where that lacks them from
    `fallback`. `device` and `dtype` are those of `chosen_device` and `chosen_dtype`. Raises WeightsError.
    """
    from transformers import CLIPModel

    source = str(resolve(source))
    config = fetch(source, "config.json")
    kind = "" if config is None else _model_type(config)
    if kind != "clip":
        found = "no config.json" if config is None else f"a model of type {kind!r}"
        raise WeightsError(f"{source} holds {found}, not a CLIPModel")
    tools = load_processor(processor) if processor else load_processor(source, fallback)
    try:
        model, report = CLIPModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # OSError, RuntimeError, SafetensorError...: files absent, torn or of other shapes
        raise WeightsError(f"{source} cannot be loaded as a CLIPModel: {first_line(error)}") from error
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise WeightsError(f"{source} lacks {len(absent)} weights of its CLIPModel, first {absent[0]}")
    return prepared(model, *tools, device=device, dtype=dtype)


def load_processor(source: str, fallback: str = "") -> tuple[Any, Any]:
    """(tokenizer, image processor) of a directory or hub id, or of `fallback` where it lacks one of them."""
    from transformers import CLIPImageProcessorPil, CLIPTokenizer

    if not _has_processor(source, quietly=bool(fallback)):
        if not fallback:
            raise WeightsError(f"{source} has no tokenizer or image processor: name one with --option processor=...")
        source = fallback
        if not _has_processor(source):
            raise WeightsError(f"{source} has no tokenizer or image processor")
    try:
        return CLIPTokenizer.from_pretrained(source), CLIPImageProcessorPil.from_pretrained(source)
    except Exception as error:
        raise WeightsError(f"{source} has no usable CLIP processor: {first_line(error)}") from error


def prepared(model: Any, tokenizer: Any, image_processor: Any, *, device: str = "", dtype: str = "") -> Clip:
    """A CLIPModel in float32 as a `Clip` on its device and in its precision."""
    chosen = chosen_device(device)
    scale = float(model.logit_scale.detach().exp())
    return Clip(
        model.eval().requires_grad_(False).to(chosen, chosen_dtype(dtype, chosen)), tokenizer, image_processor, scale
    )


class ClipScorer(ABC):
    """A reward over one CLIP model: its options, loading and warm-up. A subclass says how to score.

    `model` and `processor` are directories or hub ids; the processor defaults to the model's own. `device` is a torch
    device, by default cuda where there is one; `dtype` float32, float16 or bfloat16, by default float16 on cuda.
    """

    name: str
    low: float | None = None
    high: float | None = None
    metadata = "none"
    batch_limit = 16
    # Matrix products of another batch size may round differently.
    batch_invariant = False
    default_model = CLIP_L
    fallback_processor = CLIP_L

    def __init__(self, model: str = "", processor: str = "", device: str = "", dtype: str = "") -> None:
        precision = chosen_dtype(dtype, chosen_device(device))
        self.device, self.dtype = device, dtype
        self.model = model or self.default_model
        self.processor = processor
        self.version = self.model.rstrip("/").rsplit("/", 1)[-1]
        if precision != torch.float32:
            self.version += f"+{str(precision).removeprefix('torch.')}"
        self._clip: Clip | None = None

    @property
    def clip(self) -> Clip:
        """The model, loaded at its first use."""
        if self._clip is None:
            self._clip = self._load_clip()
        return self._clip

    def load(self) -> None:
        """Read all weights. Raises WeightsError."""
        _ = self.clip

    def warm_up(self) -> None:
        """Score one gray image, so that the first request finds everything in its place."""
        self.score([Item(np.full((self.clip.image_size, self.clip.image_size, 3), 128, np.uint8), "gray")])

    @abstractmethod
    def score(self, batch: Sequence[Item]) -> Sequence[Outcome]:
        """One outcome an item."""

    def _load_clip(self) -> Clip:
        return load_clip(
            self.model,
            processor=self.processor,
            fallback=self.fallback_processor,
            device=self.device,
            dtype=self.dtype,
        )


def _model_type(config: Path) -> str:
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    except (ValueError, AttributeError):
        raise WeightsError(f"{config} is no JSON object") from None


def _has_processor(source: str, *, quietly: bool = False) -> bool:
    """Whether both halves are there; `quietly` also takes a hub out of reach for a no."""
    # Without these files transformers would make up an empty vocabulary.
    try:
        return fetch(source, "preprocessor_config.json") is not None and (
            fetch(source, "tokenizer.json") is not None or fetch(source, "vocab.json") is not None
        )
    except WeightsError:
        if quietly:
            return False
        raise


def _central(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy, without the ends of a very long image: the processor would enlarge them before it crops them off.

    What is left has the same centre, but for half a pixel of the resized image.
    """
    height, width, _ = image.shape
    longest = _LONGEST * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    # transformers copies too, but torch would warn of arrays that cannot be written to.
    return image[top : height - top, left : width - left].copy()
