"""Stage 3: the flow-matching transformer, on captions that are wrong a set part of the time."""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.nn import functional as F
from tqdm import tqdm

from tiny_world.pretrain import autoencoder
from tiny_world.pretrain.optimizers import muon_and_adamw, rate, take_step
from tiny_world.pretrain.text import embed
from tiny_world.prompts import SIGN, SINGLE_LETTER, World, rows_by_tag
from tiny_world.scenes import contents, misread, names, render, sample_scene

TASK_SHARE = {
    "two_object": 0.12,
    "counting": 0.18,
    "colors": 0.1,
    "position": 0.26,
    "color_attr": 0.28,
}
"""Of the pictures of several shapes, or of one in a color that is asked for, relative to each other."""

LEVELS = (2.0, 0.6, -0.2)
"""Means of the noise levels' logits, a third of the pictures each."""


@dataclass(frozen=True)
class FlowSettings:
    """Knobs of the stage; ``steps`` may be raised later and the run resumed.

    ``naming`` weighs the auxiliary loss of ``Naming``; 0 leaves it out. ``bfloat16`` pays on a GPU and on a CPU with
    instructions for it; any other is slowed down tenfold by it. ``signs`` is how many pictures of signs there are for
    one of shapes; a share ``singles`` of either shows a single object or letter.
    """

    steps: int
    batch: int = 64
    scenes: int = 60_000
    signs: float = 0.5
    singles: float = 0.1
    wrong_captions: float = 0.38
    learning_rate: float = 2e-3
    cooldown: float = 0.5
    naming: float = 0.1
    ema: float = 0.995
    bfloat16: bool = False
    checkpoint_every_s: float = 600.0
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """Pictures as latents (N, C, h, w), what each latent pixel shows by patch (N, patches, pixels of a patch), the
    prompt's index (N,)."""

    latents: torch.Tensor
    contents: torch.Tensor
    prompts: torch.Tensor


def pairs(pipe: StableDiffusion3Pipeline, world: World, prompts: list[dict[str, Any]], settings: FlowSettings) -> Pairs:
    """Draws the training set: each scene shows its prompt, or what a wrong caption would make of it.

    Typos begin at a word's second letter. The text encoders read from the left and cannot tell a word's first letter
    from one that stands alone, so a typo there would teach wrong single letters.
    """
    rng = random.Random(settings.seed)
    by_task = rows_by_tag(prompts)
    share = task_shares(settings.signs, settings.singles)
    tasks, shares = list(by_task), [share[task] for task in by_task]
    latents: list[torch.Tensor] = []
    rows: list[int] = []
    shows: list[np.ndarray] = []
    side, patch = pipe.transformer.config.sample_size, pipe.transformer.config.patch_size
    pending: list[np.ndarray] = []
    for n in tqdm(range(settings.scenes), desc="scenes", unit="scene", mininterval=5):
        task = rng.choices(tasks, shares)[0]
        row = rng.choice(by_task[task])
        shown = prompts[row]
        if rng.random() < settings.wrong_captions:
            shown = misread(shown, world, rng, right_letters=1)
        rows.append(row)
        scene = sample_scene(shown, world, rng)
        shows.append(by_patch(contents(scene, world, side), patch))
        pending.append(render(scene))
        if len(pending) == 1000 or n == settings.scenes - 1:
            latents.append(autoencoder.encode(pipe.vae, np.stack(pending)))
            pending.clear()
    return Pairs(torch.cat(latents), torch.from_numpy(np.stack(shows)), torch.tensor(rows))


def task_shares(signs: float, singles: float) -> dict[str, float]:
    """How often each task is drawn: ``signs`` for one picture of shapes, a share ``singles`` of both with one thing
    alone."""
    several = (1 - singles) / sum(TASK_SHARE.values())
    shapes = {task: several * share for task, share in TASK_SHARE.items()} | {"single_object": singles}
    return shapes | {SIGN: signs * (1 - singles), SINGLE_LETTER: signs * singles}


def by_patch(cells: np.ndarray, patch: int) -> np.ndarray:
    """(side, side) -> (patches, patch * patch), patches row by row as the transformer sees them."""
    across = len(cells) // patch
    return cells.reshape(across, patch, across, patch).swapaxes(1, 2).reshape(across * across, patch * patch)


def noise_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """t in (0, 1), logit-normal: a third around the levels that decide the layout, one around the outlines', one around
    those of the strokes of letters.

    A color or a place differs in so many latent elements that it is settled above t = .85, where an unshifted
    logit-normal hardly looks; whether an M or an N is drawn, between .8 and .4.
    """
    logits = torch.randn(count, generator=generator)
    logits += torch.tensor(LEVELS)[torch.arange(count) * len(LEVELS) // count]
    return torch.sigmoid(logits)


class Naming(torch.nn.Module):
    """Auxiliary head: from the hidden patches of an inner block, which shape of which color, or which letter, each part
    of one shows.

    The velocity's own error says little about what belongs where, for at the noise levels that decide
    it almost all of that error is noise; a name a patch says it plainly. Used in pretraining alone, never saved
    with the model.
    """

    def __init__(self, transformer: SD3Transformer2DModel, world: World) -> None:
        super().__init__()
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.names = names(world)
        parts = transformer.config.patch_size**2
        self.head = torch.nn.Sequential(
            torch.nn.LayerNorm(width),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, parts * self.names),
        )

    def loss(self, hidden: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of ``contents`` (B, patches, parts) under ``hidden`` (B, patches, width)."""
        return F.cross_entropy(self.head(hidden).float().view(-1, self.names), contents.flatten())


def hidden_patches(transformer: SD3Transformer2DModel) -> list[torch.Tensor]:
    """A list that holds, after each forward pass, the hidden patches (B, patches, width) of the last block but one."""
    seen: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        seen[:] = [output[1]]

    transformer.transformer_blocks[-2].register_forward_hook(keep)
    return seen


def velocity_loss(
    transformer: SD3Transformer2DModel,
    x0: torch.Tensor,
    tokens: torch.Tensor,
    pooled: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean of ||v(x_t, t) - (x_1 - x_0)||^2 with x_t = (1 - t) x_0 + t x_1."""
    t = noise_levels(len(x0), generator).to(x0.device)
    x1 = torch.randn(x0.shape, generator=generator).to(x0.device)
    t_ = t.view(-1, 1, 1, 1)
    v = transformer((1 - t_) * x0 + t_ * x1, tokens, pooled, 1000 * t, return_dict=False)[0]
    return F.mse_loss(v.float(), x1 - x0)


def train(
    pipe: StableDiffusion3Pipeline,
    world: World,
    prompts: list[dict[str, Any]],
    settings: FlowSettings,
    folder: Path,
    device: str,
) -> None:
    """Fits the transformer in place; its weights end as the moving average. Resumes from ``folder`` if it can."""
    torch.manual_seed(settings.seed)
    data_path = folder / "pairs.pt"
    if data_path.exists():
        data = Pairs(**torch.load(data_path, weights_only=True))
    else:
        data = pairs(pipe, world, prompts, settings)
        torch.save({"latents": data.latents, "contents": data.contents, "prompts": data.prompts}, data_path)
    with torch.no_grad():
        tokens, pooled = (part.to(device) for part in embed(pipe, [prompt["prompt"] for prompt in prompts]))

    transformer = pipe.transformer.to(device).train()
    average = [parameter.detach().clone() for parameter in transformer.parameters()]
    naming = Naming(transformer, world).to(device)
    hidden = hidden_patches(transformer)
    for block in transformer.transformer_blocks:
        block.compile()
    tools = muon_and_adamw(
        transformer.named_parameters(), "transformer_blocks", naming.parameters(), settings.learning_rate
    )
    generator = torch.Generator().manual_seed(settings.seed)
    start = 0
    checkpoint = folder / "flow.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        transformer.load_state_dict(state["transformer"])
        naming.load_state_dict(state["naming"])
        average = state["average"]
        for tool, saved in zip(tools, state["optimizers"], strict=True):
            tool.load_state_dict(saved)
        generator.set_state(state["generator"].cpu())
        start = state["step"]

    def save(step: int) -> None:
        state = {
            "transformer": transformer.state_dict(),
            "naming": naming.state_dict(),
            "average": average,
            "optimizers": [tool.state_dict() for tool in tools],
            "generator": generator.get_state(),
            "step": step,
        }
        aside = checkpoint.with_suffix(".tmp")
        torch.save(state, aside)
        aside.rename(checkpoint)

    latents = data.latents.to(device)
    shows = data.contents.to(device)
    rows = data.prompts.to(device)
    saved_at = time.monotonic()
    smooth, smooth_unnamed = 1.0, 3.0
    bar = tqdm(range(start, settings.steps), initial=start, total=settings.steps, desc="flow", mininterval=10)
    for step in bar:
        if time.monotonic() - saved_at > settings.checkpoint_every_s:
            save(step)
            saved_at = time.monotonic()
        chosen = torch.randint(len(latents), (settings.batch,), generator=generator).to(device)
        row = rows[chosen]
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.bfloat16):
            loss = velocity_loss(transformer, latents[chosen], tokens[row], pooled[row], generator)
            unnamed = naming.loss(hidden[0], shows[chosen])
        (loss + settings.naming * unnamed).backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        take_step(tools, settings.learning_rate * rate(step, settings.steps, settings.cooldown))
        decay = min(settings.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in transformer.parameters()], 1 - decay)
        smooth += 0.01 * (loss.item() - smooth)
        smooth_unnamed += 0.01 * (unnamed.item() - smooth_unnamed)
        bar.set_postfix(loss=f"{smooth:.4f}", naming=f"{smooth_unnamed:.4f}", refresh=False)
    save(settings.steps)
    with torch.no_grad():
        for parameter, mean in zip(transformer.parameters(), average, strict=True):
            parameter.copy_(mean)
    transformer.eval().to("cpu")
