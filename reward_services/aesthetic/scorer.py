"""LAION's improved aesthetic predictor: a small network on the CLIP ViT-L/14 embedding of the image."""

from collections.abc import Sequence

import torch
from torch import nn

from reward_api import Item, Score
from reward_services.clip import ClipScorer
from reward_services.weights import WeightsError, fetch_file, read_tensors


def predictor(channels: int = 768) -> nn.Sequential:
    """The published network: linear layers and dropouts only, so that in use it is an affine function."""
    return nn.Sequential(
        nn.Linear(channels, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )


class AestheticScorer(ClipScorer):
    """The predicted rating, about 1 to 10; the prompt is not looked at.

    `weights` is the predictor's .pth or .safetensors file, or ORGANISATION/REPOSITORY/FILE of the hub; the default is a
    copy of the published sac+logos+ava1-l14-linearMSE. It belongs to CLIP ViT-L/14 and to no other model.
    """

    name = "aesthetic"
    meaning = "LAION's improved aesthetic predictor, trained on ratings of 1 to 10; blind to the prompt"

    def __init__(
        self,
        model: str = "",
        processor: str = "",
        device: str = "",
        dtype: str = "",
        weights: str = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
    ) -> None:
        super().__init__(model, processor, device, dtype)
        self.weights = weights
        self.version = f"{self.version}+{weights.rsplit('/', 1)[-1]}"
        self._predictor: nn.Sequential | None = None

    def load(self) -> None:
        """Read both networks, the small one first. Raises WeightsError."""
        path = fetch_file(self.weights)
        state = {name.removeprefix("layers."): tensor for name, tensor in read_tensors(path).items()}
        first = state.get("0.weight")
        if first is None or first.ndim != 2:
            raise WeightsError(f"{path} is no aesthetic predictor: it has no matrix layers.0.weight")
        network = predictor(first.shape[1])
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            fault = str(error).splitlines()[-1].strip()
            raise WeightsError(f"{path} is no aesthetic predictor: {fault}") from None
        super().load()
        channels = int(self.clip.model.config.projection_dim)
        if first.shape[1] != channels:
            raise WeightsError(f"{path} takes {first.shape[1]} channels, but {self.model} gives {channels}")
        self._predictor = network.eval().to(self.clip.model.device)

    def score(self, batch: Sequence[Item]) -> list[Score]:
        """Predicted ratings, in float32."""
        if self._predictor is None:
            self.load()
        assert self._predictor is not None
        with torch.inference_mode():
            rating_B1 = self._predictor(self.clip.image_embeddings([item.image for item in batch]))
        return [Score(rating) for rating in rating_B1[:, 0].tolist()]
