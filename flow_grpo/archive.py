"""Pictures on disk and what they were asked to show, as a list or as folders."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.prompt_records import PromptError, numbered_lines, read_object, read_record

LISTS = ("prompts.jsonl", "metadata.jsonl")
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True)
class Picture:
    """A picture not yet read. ``name`` is its path from the archive's folder, as the results call it."""

    name: str
    path: Path
    prompt: str
    metadata: dict[str, Any] | None
    tag: str
    rewards: tuple[str, ...]
    """Asked by its own line; empty where the line asks for none."""


def pictures(source: Path) -> Iterator[Picture]:
    """The pictures of a JSONL or a folder, in a fixed order. Raises PromptError naming file and line.

    - JSONL: ``{"image", "prompt", "metadata"?, "rewards"?}``, or GenEval's line with an ``image``; ``file_name`` is
      another word for ``image``. Paths start from the JSONL's own folder.
    - A folder that holds such a ``prompts.jsonl`` or ``metadata.jsonl``.
    - GenEval's layout: ``00000/metadata.jsonl`` with one line, and the pictures in ``00000/samples``.
    - Pictures that each have a ``NAME.json`` (a line as above) or ``NAME.txt`` (the prompt) beside them.
    """
    if not source.is_dir():
        return _listed(source)
    for name in LISTS:
        if (source / name).is_file():
            return _listed(source / name)
    prompts = [entry for entry in _entries(source) if (entry / "metadata.jsonl").is_file()]
    return _geneval(source, prompts) if prompts else _beside(source)


def _listed(path: Path) -> Iterator[Picture]:
    for where, line in numbered_lines(path):
        document = read_object(line, where)
        image = document.get("image", document.get("file_name"))
        if not isinstance(image, str) or not image:
            raise PromptError(f'{where}: needs an "image", the path of a picture')
        yield _picture(image, path.parent / image, document, where)


def _geneval(source: Path, prompts: list[Path]) -> Iterator[Picture]:
    for folder in prompts:
        lines = list(numbered_lines(folder / "metadata.jsonl"))
        if len(lines) != 1:
            raise PromptError(f"{folder / 'metadata.jsonl'}: has {len(lines)} lines, not the one of its prompt")
        where, line = lines[0]
        document = read_object(line, where)
        samples = [entry for entry in _entries(folder / "samples") if entry.suffix.lower() in _SUFFIXES]
        if not samples:
            raise PromptError(f"{folder / 'samples'}: holds no picture")
        for sample in samples:
            yield _picture(sample.relative_to(source).as_posix(), sample, document, where)


def _beside(source: Path) -> Iterator[Picture]:
    for image in _entries(source):
        if image.suffix.lower() not in _SUFFIXES:
            continue
        if (described := image.with_suffix(".json")).is_file():
            document = read_object(_text(described), str(described))
        elif (described := image.with_suffix(".txt")).is_file():
            document = {"prompt": _text(described).strip()}
        else:
            raise PromptError(
                f"{image}: has no prompt: {' or '.join(LISTS)} in its folder, or {image.stem}.json or "
                f"{image.stem}.txt beside it"
            )
        yield _picture(image.name, image, document, str(described))


def _picture(name: str, path: Path, document: Mapping[str, Any], where: str) -> Picture:
    record = read_record(document, where)
    rewards = document.get("rewards") or []
    if not isinstance(rewards, list) or not all(isinstance(reward, str) and reward for reward in rewards):
        raise PromptError(f'{where}: "rewards" is not a list of names')
    return Picture(name, path, record.text, record.metadata, record.tag, tuple(dict.fromkeys(rewards)))


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as error:
        raise PromptError(f"{folder}: cannot be read ({error.strerror})") from error


def _text(path: Path) -> str:
    return "".join(line for _, line in numbered_lines(path))
