"""Stage 2: CLIP-architecture text encoders that understand the world's prompts.

They learn to name what a prompt asks for (shapes, colors, count, relation, letters) from its pooled embedding,
so the transformer meets features that already tell the prompts apart.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch.nn import functional as F
from tqdm import tqdm

from tiny_world.letters import LETTERS
from tiny_world.pretrain.model import MAX_SEQUENCE_LENGTH
from tiny_world.prompts import RELATIONS, World, is_sign

Embeddings = tuple[torch.Tensor, torch.Tensor]
"""Of tokens (L, width), pooled (width,)."""
LONGEST_SIGN = 4
KEPT = 30.0
"""Weight of the error of embeddings that are to stay as they were."""


def attributes(metadata: dict[str, Any], world: World) -> list[int]:
    """Class indices (shape, color, count, second shape, second color, relation, each letter); 0 stands for absent."""
    if is_sign(metadata):
        letters = [_index(list(LETTERS), letter) for letter in metadata["text"]]
        return [0] * 6 + letters + [0] * (LONGEST_SIGN - len(letters))
    clauses = metadata["include"]
    if metadata["tag"] == "position":
        clauses = clauses[::-1]
    relation = clauses[0].get("position")
    first, second = clauses[0], clauses[1] if len(clauses) > 1 else {}
    return [
        _index(world.shapes, first["class"]),
        _index(world.colors, first.get("color")),
        first["count"],
        _index(world.shapes, second.get("class")),
        _index(world.colors, second.get("color")),
        _index(RELATIONS, relation[0] if relation else None),
        *[0] * LONGEST_SIGN,
    ]


def _index(names: Sequence[str], name: str | None) -> int:
    return 0 if name is None else names.index(name) + 1


def _sizes(world: World) -> list[int]:
    shapes, colors = len(world.shapes) + 1, len(world.colors) + 1
    relation, letters = len(RELATIONS) + 1, [len(LETTERS) + 1] * LONGEST_SIGN
    return [shapes, colors, world.most_objects + 1, shapes, colors, relation, *letters]


def embed(pipe: StableDiffusion3Pipeline, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token embeddings (B, L, width) and pooled embeddings (B, width), as the pipeline itself makes them."""
    tokens, _, pooled, _ = pipe.encode_prompt(
        texts, texts, texts, do_classifier_free_guidance=False, max_sequence_length=MAX_SEQUENCE_LENGTH
    )
    return tokens, pooled


def train(
    pipe: StableDiffusion3Pipeline,
    world: World,
    prompts: list[dict[str, Any]],
    steps: int,
    seed: int,
    known: dict[str, Embeddings] | None = None,
) -> None:
    """Fits both text encoders in place.

    ``known`` holds token and pooled embeddings by prompt text that a transformer has learned already: they are kept
    as they are, as well as can be, while the encoders learn the other prompts.
    """
    torch.manual_seed(seed)
    sizes = _sizes(world)
    targets = torch.tensor([attributes(prompt, world) for prompt in prompts])
    texts = [prompt["prompt"] for prompt in prompts]
    known = known or {}
    by_kind = [[i for i, text in enumerate(texts) if (text in known) == kind] for kind in (False, True)]
    by_kind = [rows for rows in by_kind if rows]
    heads = torch.nn.Linear(pipe.transformer.config.pooled_projection_dim, sum(sizes))
    encoders = torch.nn.ModuleList([pipe.text_encoder, pipe.text_encoder_2])
    parameters = [*encoders.requires_grad_(True).parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    encoders.train()
    bar = tqdm(range(steps), desc="text encoders", unit="step", mininterval=5)
    for _ in bar:
        rows = [kind[int(i)] for kind in by_kind for i in torch.randint(len(kind), (128 // len(by_kind),))]
        tokens, pooled = embed(pipe, [texts[row] for row in rows])
        logits = heads(pooled + 0.1 * torch.randn_like(pooled)).split(sizes, dim=1)
        losses = [F.cross_entropy(part, targets[rows, k]) for k, part in enumerate(logits)]
        loss = torch.stack(losses).sum()
        kept = [(i, *known[texts[row]]) for i, row in enumerate(rows) if texts[row] in known]
        if kept:
            places = [i for i, _, _ in kept]
            loss = loss + KEPT * F.mse_loss(tokens[places], torch.stack([token for _, token, _ in kept]))
            loss = loss + KEPT * F.mse_loss(pooled[places], torch.stack([pool for _, _, pool in kept]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    encoders.eval().requires_grad_(False)
    with torch.no_grad():
        tokens, pooled = embed(pipe, texts)
        logits = heads(pooled).split(sizes, dim=1)
    right = torch.stack([part.argmax(1) == targets[:, k] for k, part in enumerate(logits)]).float().mean().item()
    bar.write(f"text encoders: {100 * right:.1f} % of attributes read, pooled std {pooled.std().item():.2f}")
    if known:
        moved = torch.stack([(tokens[i] - known[t][0]).square().mean() for i, t in enumerate(texts) if t in known])
        bar.write(
            f"text encoders: known prompts moved by {moved.mean().sqrt().item():.3f} of {tokens.std().item():.2f}"
        )
