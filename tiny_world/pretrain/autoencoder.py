"""Stage 1: a tiny autoencoder from 64x64 pictures to 16x16 latents."""

import random

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F
from tqdm import tqdm

from tiny_world.prompts import World, every_prompt
from tiny_world.scenes import render, sample_scene

LATENT_NOISE = 0.06
"""Noise on the latents while the decoder learns, so that it forgives small errors of the flow."""


def pictures(world: World, count: int, rng: random.Random) -> torch.Tensor:
    """Random scenes as a (count, 3, size, size) float tensor in [-1, 1], tasks in equal shares."""
    by_task: dict[str, list[dict[str, object]]] = {}
    for prompt in every_prompt(world):
        by_task.setdefault(prompt["tag"], []).append(prompt)
    tasks = list(by_task.values())
    images = [render(sample_scene(rng.choice(rng.choice(tasks)), world, rng)) for _ in range(count)]
    return to_tensor(np.stack(images))


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def train(vae: AutoencoderTiny, world: World, steps: int, batch: int, seed: int) -> None:
    """Fits the autoencoder in place and writes the latents' mean and spread into its config."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    vae.train()
    bar = tqdm(range(steps), desc="autoencoder", unit="step", mininterval=5)
    for _ in bar:
        x = pictures(world, batch, rng)
        z = vae.encoder(x)
        decoded = vae.decoder(z + LATENT_NOISE * torch.randn_like(z))
        loss = F.mse_loss(decoded, x) + 0.2 * F.l1_loss(decoded, x) + 1e-4 * z.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    vae.eval()
    with torch.no_grad():
        x = pictures(world, 256, random.Random(seed + 1))
        z = vae.encoder(x)
        error = F.mse_loss(vae.decoder(z).clamp(-1, 1), x).item()
    vae.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())
    bar.write(f"autoencoder: {10 * np.log10(4 / error):.1f} dB, latent std {z.std().item():.2f}")


@torch.no_grad()
def encode(vae: AutoencoderTiny, images: np.ndarray, batch: int = 256) -> torch.Tensor:
    """Normalised latents (N, C, h, w) of uint8 images (N, H, W, 3): zero mean and unit spread over all elements."""
    parts = [vae.encoder(to_tensor(images[i : i + batch])) for i in range(0, len(images), batch)]
    latents: torch.Tensor = (torch.cat(parts) - vae.config.shift_factor) * vae.config.scaling_factor
    return latents
