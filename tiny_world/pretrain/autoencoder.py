"""Stage 1: a tiny autoencoder from 64x64 pictures to 16x16 latents."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F
from tqdm import tqdm

from tiny_world.prompts import SIGN, World, rows_by_tag
from tiny_world.scenes import render, sample_scene

LATENT_NOISE = 0.06
"""Noise on the latents while the decoder learns, so that it forgives small errors of the flow."""


class Pictures:
    """Random scenes of prompts, one in three a word if there are any, the other tasks in equal shares."""

    def __init__(self, prompts: Sequence[dict[str, Any]], world: World, seed: int) -> None:
        self._world, self._rng = world, random.Random(seed)
        by_task = {tag: [prompts[row] for row in rows] for tag, rows in rows_by_tag(prompts).items()}
        self._words = by_task.pop(SIGN, None)
        self._tasks = list(by_task.values())

    def draw(self, count: int) -> torch.Tensor:
        """(count, 3, size, size) in [-1, 1]."""
        images = [render(sample_scene(self._prompt(), self._world, self._rng)) for _ in range(count)]
        return to_tensor(np.stack(images))

    def _prompt(self) -> dict[str, Any]:
        if self._words and self._rng.random() < 1 / 3:
            return self._rng.choice(self._words)
        return self._rng.choice(self._rng.choice(self._tasks))


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def train(vae: AutoencoderTiny, scenes: Pictures, steps: int, batch: int, seed: int, decoder_only: bool) -> None:
    """Fits the autoencoder in place and writes the latents' mean and spread into its config.

    ``decoder_only`` leaves the latents as they are, for a flow that has learned them already.
    """
    torch.manual_seed(seed)
    vae.encoder.requires_grad_(not decoder_only)
    learned = vae.decoder if decoder_only else vae
    optimizer = torch.optim.AdamW(learned.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    vae.train()
    bar = tqdm(range(steps), desc="autoencoder", unit="step", mininterval=5)
    for _ in bar:
        x = scenes.draw(batch)
        z = vae.encoder(x)
        decoded = vae.decoder(z + LATENT_NOISE * torch.randn_like(z))
        loss = F.mse_loss(decoded, x) + 0.2 * F.l1_loss(decoded, x) + 1e-4 * z.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    vae.eval()
    with torch.no_grad():
        x = scenes.draw(256)
        z = vae.encoder(x)
        error = F.mse_loss(vae.decoder(z).clamp(-1, 1), x).item()
    if not decoder_only:
        vae.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())
    bar.write(f"autoencoder: {10 * np.log10(4 / error):.1f} dB, latent std {z.std().item():.2f}")


@torch.no_grad()
def encode(vae: AutoencoderTiny, images: np.ndarray, batch: int = 256) -> torch.Tensor:
    """Normalised latents (N, C, h, w) of uint8 images (N, H, W, 3): zero mean and unit spread over all elements."""
    parts = [vae.encoder(to_tensor(images[i : i + batch])) for i in range(0, len(images), batch)]
    latents: torch.Tensor = (torch.cat(parts) - vae.config.shift_factor) * vae.config.scaling_factor
    return latents
