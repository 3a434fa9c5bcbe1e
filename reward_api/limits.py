"""What a server is willing to read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request. Servers refuse what exceeds them; the client splits its requests to fit."""

    max_body_bytes: int = 64 * 2**20
    max_items: int = 256
    max_pixels: int = 16_000_000
    max_prompt_chars: int = 4096
    max_metadata_depth: int = 16
    body_seconds: float = 30.0
