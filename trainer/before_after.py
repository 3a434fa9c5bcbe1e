"""Pictures of two evaluations side by side, as HTML with the pictures inside."""

import base64
import io
from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

PAIRS_PER_TASK = 8
_LARGEST = 192
"""Pixels a side. Pictures up to this are embedded as they are and enlarged unsmoothed; others are shrunk to it."""

Item = dict[str, Any]
"""An image as an evaluation's JSON describes it: prompt, tag, image, scores."""


def gallery(folder: Path, before: Sequence[Item], after: Sequence[Item]) -> str:
    """Some pairs of every task, evenly spread; items pair up by their place, and either sequence may be empty.

    ``folder`` is what the items' image paths start from.
    """
    by_task: dict[str, list[tuple[Item | None, Item | None]]] = {}
    for old, new in zip_longest(before, after):
        by_task.setdefault((new or old)["tag"], []).append((old, new))
    verdicts = verdict_rewards([*before, *after])
    parts = []
    for task, pairs in by_task.items():
        count = min(PAIRS_PER_TASK, len(pairs))
        chosen = [pairs[index * len(pairs) // count] for index in range(count)]
        figures = "".join(_pair(folder, old, new, verdicts) for old, new in chosen)
        parts.append(f'<h3>{escape(task)}</h3><div class="pairs">{figures}</div>')
    return "\n".join(parts)


def verdict_rewards(items: Sequence[Item]) -> set[str]:
    """Rewards that only ever say 0 or 1, and so read better as wrong and correct."""
    names = {name for item in items for name in item["scores"]}
    return {name for name in names if all(item["scores"].get(name) in (None, 0.0, 1.0) for item in items)}


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pair(folder: Path, before: Item | None, after: Item | None, verdicts: set[str]) -> str:
    sides = [(when, item) for when, item in (("before", before), ("after", after)) if item is not None]
    prompt = sides[0][1]["prompt"]
    cells = []
    for when, item in sides:
        picture = _picture(folder / item["image"], f"{prompt}, {when}")
        words = _judgement(item["scores"], verdicts)
        cells.append(f'<div>{picture}<div class="verdict"><span class="when">{when}</span> {words}</div></div>')
    return f'<figure><div class="two">{"".join(cells)}</div><figcaption>{escape(prompt)}</figcaption></figure>'


def _judgement(scores: dict[str, float | None], verdicts: set[str]) -> str:
    words = []
    for name, value in scores.items():
        label = f"{escape(name)} " if len(scores) > 1 else ""
        if value is None:
            words.append(f"{label}no score")
        elif name in verdicts:
            tone, verdict = ("good", "✓ correct") if value else ("bad", "✗ wrong")
            words.append(f'{label}<span class="{tone}">{verdict}</span>')
        else:
            words.append(f"{label}{value:.3f}")
    return "<br>".join(words) or "not scored"


def _picture(path: Path, description: str) -> str:
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError:
        return '<div class="no-picture">picture missing</div>'
    crisp = ' class="crisp"' if max(picture.size) <= _LARGEST else ""
    picture.thumbnail((_LARGEST, _LARGEST))
    return f'<img{crisp} src="{data_uri(picture)}" alt="{escape(description)}">'
