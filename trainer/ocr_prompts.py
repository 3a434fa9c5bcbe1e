"""Prompts that ask for a text in the picture: templates with a place for it, and the texts."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from tiny_world.prompts import Metadata
from trainer.draws import stream
from trainer.prompt_records import PromptError, numbered_lines

PLACE = "{text}"
"""Where a template has its text, which is put there in the double quotes the OCR reward looks for."""


def read_templates(path: Path) -> list[str]:
    """A template a line. Raises PromptError naming file and line."""
    templates = []
    for where, line in numbered_lines(path):
        if line.count(PLACE) != 1:
            raise PromptError(f"{where}: a template has {PLACE} exactly once")
        if '"' in line:
            raise PromptError(f"{where}: a template has no double quotes; {PLACE} brings its own")
        templates.append(" ".join(line.split()))
    return _some(templates, path)


def read_texts(path: Path) -> list[str]:
    """A text a line, of one word or several; what reads the same comes once. Raises PromptError."""
    texts: dict[str, str] = {}
    for where, line in numbered_lines(path):
        if '"' in line:
            raise PromptError(f"{where}: a text cannot hold a double quote, which ends it in a prompt")
        texts.setdefault(_as_read(line), " ".join(line.split()))
    return _some(list(texts.values()), path)


def split(texts: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """(texts for training, held-out texts): a share of them, drawn by the seed, at least one where the share is not 0.

    Raises PromptError if nothing is left for one side.
    """
    if not 0 <= share < 1:
        raise PromptError(f"the held-out share must be at least 0 and below 1, got {share}")
    held_out_count = max(1, round(share * len(texts))) if share else 0
    if held_out_count >= len(texts):
        raise PromptError(f"{len(texts)} texts leave none for training with a held-out share of {share}")
    held_out = set(stream(seed, "ocr", "held-out").sample(sorted(texts), held_out_count))
    return [text for text in texts if text not in held_out], [text for text in texts if text in held_out]


def compose(templates: Sequence[str], texts: Sequence[str], count: int, seed: int) -> list[Metadata]:
    """``count`` lines ``{"tag": "ocr", "prompt"}`` in random order; one comes again only after all others have."""
    size = len(templates) * len(texts)
    order = stream(seed, "ocr").sample(range(size), min(size, count))
    lines = []
    for index in itertools.islice(itertools.cycle(order), count):
        template, text = divmod(index, len(texts))
        lines.append({"tag": "ocr", "prompt": templates[template].replace(PLACE, f'"{texts[text]}"')})
    return lines


def _as_read(text: str) -> str:
    """What the OCR reward compares: no spaces, lower case."""
    return "".join(text.split()).lower()


def _some(lines: list[str], path: Path) -> list[str]:
    if not lines:
        raise PromptError(f"{path}: is empty")
    return lines
