"""Stable Diffusion 3 and 3.5, of any size, with or without T5."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from tiny_world import resolve
from trainer.config import LoraSettings, ModelConfig

ATTENTION_PROJECTIONS = (
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.to_k",
    "attn.to_out.0",
    "attn.to_q",
    "attn.to_v",
)


class ModelError(Exception):
    """A model that cannot be loaded or does not fit the recipe; the message says which."""


@dataclass(frozen=True)
class Conditioning:
    """Text features of B prompts: token embeddings (B, L, width) and pooled embeddings (B, width)."""

    tokens_BLD: Tensor
    pooled_BD: Tensor

    def expand(self, count: int) -> "Conditioning":
        """Each prompt repeated ``count`` times, copies side by side."""
        return Conditioning(self.tokens_BLD.repeat_interleave(count, 0), self.pooled_BD.repeat_interleave(count, 0))


class SD3:
    """A pipeline with a LoRA on its transformer; everything but the LoRA is frozen."""

    def __init__(self, config: ModelConfig, lora: LoraSettings, seed: int = 0) -> None:
        self.device = _device(config.device)
        self.dtype = getattr(torch, config.dtype)
        self._max_sequence_length = config.max_sequence_length
        self.pipe = _load_pipeline(config.path, self.dtype)
        self.pipe.to(self.device)
        self.transformer = self.pipe.transformer
        for part in (self.transformer, self.pipe.vae, *_text_encoders(self.pipe)):
            part.requires_grad_(False).eval()
        self.pipe.vae.to(memory_format=torch.channels_last)  # decodes twice as fast on a CPU
        targets = list(lora.targets or ATTENTION_PROJECTIONS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transformer.add_adapter(
                LoraConfig(r=lora.rank, lora_alpha=lora.alpha, init_lora_weights="gaussian", target_modules=targets)
            )
        for parameter in self.lora_parameters():
            parameter.data = parameter.data.float()
        stride = self.pipe.vae_scale_factor * self.transformer.config.patch_size
        if config.resolution % stride:
            raise ModelError(
                f"resolution {config.resolution} is not a multiple of {stride}, the stride of {config.path}"
            )
        side = config.resolution // self.pipe.vae_scale_factor
        self.latent_shape = (self.transformer.config.in_channels, side, side)

    def lora_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.transformer.parameters() if parameter.requires_grad]

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """The frozen reference model."""
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()

    def sigmas(self, steps: int) -> list[float]:
        """steps + 1 noise levels from 1 to 0: the pipeline's own schedule."""
        self.pipe.scheduler.set_timesteps(steps)
        return [float(sigma) for sigma in self.pipe.scheduler.sigmas]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        texts = list(prompts)
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            texts,
            texts,
            texts,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._max_sequence_length,
        )
        return Conditioning(tokens.to(self.dtype), pooled.to(self.dtype))

    def velocity(
        self, x_BCHW: Tensor, t: float, text: Conditioning, unconditional: Conditioning | None, guidance: float
    ) -> Tensor:
        """v(x_t, t) in float32: (B, C, H, W). With guidance above 1 both branches run, and both carry gradient."""
        if guidance == 1.0:
            return self._forward(x_BCHW, t, text)
        if unconditional is None:
            raise ValueError("guidance needs the unconditional prompt's features")
        both = Conditioning(
            torch.cat([unconditional.tokens_BLD, text.tokens_BLD]), torch.cat([unconditional.pooled_BD, text.pooled_BD])
        )
        without, within = self._forward(torch.cat([x_BCHW, x_BCHW]), t, both).chunk(2)
        return without + guidance * (within - without)

    def _forward(self, x_BCHW: Tensor, t: float, text: Conditioning) -> Tensor:
        timestep = torch.full((len(x_BCHW),), t * self.pipe.scheduler.config.num_train_timesteps, device=self.device)
        velocity: Tensor = self.transformer(
            hidden_states=x_BCHW.to(self.dtype),
            encoder_hidden_states=text.tokens_BLD,
            pooled_projections=text.pooled_BD,
            timestep=timestep,
            return_dict=False,
        )[0]
        return velocity.float()

    @torch.no_grad()
    def decode(self, x0_BCHW: Tensor) -> NDArray[np.uint8]:
        """Pictures (B, H, W, 3) of clean latents, on the host."""
        vae = self.pipe.vae
        latents = x0_BCHW.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        decoded = vae.decode(latents, return_dict=False)[0].float()
        pixels = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def save_lora(self, folder: Path) -> None:
        """Writes ``pytorch_lora_weights.safetensors``, which diffusers' ``load_lora_weights`` reads."""
        layers = {name: value.contiguous() for name, value in get_peft_model_state_dict(self.transformer).items()}
        metadata = {"transformer": self.transformer.peft_config["default"]}
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=_plain(metadata["transformer"].to_dict()),
        )

    def load_lora(self, folder: Path) -> None:
        """Takes over weights that ``save_lora`` wrote. Raises ModelError if they do not fit the recipe's LoRA."""
        try:
            state = StableDiffusion3Pipeline.lora_state_dict(folder)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read LoRA weights from {folder}: {error}") from error
        layers = {name.removeprefix("transformer."): value for name, value in state.items()}
        known = get_peft_model_state_dict(self.transformer)
        if {name: value.shape for name, value in layers.items()} != {name: v.shape for name, v in known.items()}:
            raise ModelError(f"the LoRA in {folder} has other modules or another rank than the recipe")
        set_peft_model_state_dict(self.transformer, layers)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}


def _device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _text_encoders(pipe: StableDiffusion3Pipeline) -> list[torch.nn.Module]:
    encoders = (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3)
    return [encoder for encoder in encoders if encoder is not None]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the libraries' bars and remarks, which are about every part they load; errors still raise."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)


def _load_pipeline(path: str, dtype: torch.dtype) -> StableDiffusion3Pipeline:
    source = str(resolve(path))
    try:
        index = DiffusionPipeline.load_config(source)
        absent = {
            name: None
            for name in ("text_encoder_3", "tokenizer_3")
            if tuple(index.get(name) or (None,)) in {(None,), (None, None)}
        }
        with _quietly():
            pipe = StableDiffusion3Pipeline.from_pretrained(source, dtype=dtype, **absent)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a Stable Diffusion 3 pipeline from {source}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe
