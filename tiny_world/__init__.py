"""The embedded default: a small picture world, its captions, and the script that pretrains a model on it.

Nothing here scores an image; the figures on the model card come from ``flow-grpo evaluate``.
"""

from pathlib import Path

PREFIX = "tiny_world:"
"""What the path of a file inside this package begins with."""


def resolve(path: str) -> Path:
    """``tiny_world:FOLDER/FILE`` lies inside the installed package; anything else is an ordinary path."""
    if path.startswith(PREFIX):
        return Path(__file__).parent / path.removeprefix(PREFIX)
    return Path(path)
