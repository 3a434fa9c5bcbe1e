"""One line of a prompt set, from whatever file it comes. Imports without torch."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class PromptError(Exception):
    """A prompt file that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Record:
    """A prompt as it was read: its metadata if any, and its task."""

    text: str
    metadata: dict[str, Any] | None
    tag: str


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """("FILE, line N", text) of every line that is not blank. Raises PromptError."""
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", line
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: is not UTF-8: {error}") from error


def read_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises PromptError, which begins with ``where``."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise PromptError(f"{where}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise PromptError(f"{where}: is not a JSON object")
    return document


def read_record(document: Mapping[str, Any], where: str) -> Record:
    """Prompt, metadata and tag of a line: GenEval's own, or ``{"prompt", "metadata"?, "tag"?}``. Raises PromptError."""
    text = document.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f'{where}: needs a non-empty "prompt"')
    metadata = document.get("metadata")
    if metadata is None and document.get("include") is not None:
        metadata = {key: document[key] for key in ("tag", "include", "exclude", "prompt") if key in document}
    if metadata is not None and not isinstance(metadata, dict):
        raise PromptError(f'{where}: "metadata" is not a JSON object')
    tag = document.get("tag") or (metadata or {}).get("tag") or "prompt"
    if not isinstance(tag, str):
        raise PromptError(f'{where}: "tag" is not a text')
    return Record(text, metadata, tag)
