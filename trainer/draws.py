"""Random draws that do not depend on what was drawn before.

Every draw is keyed by what it is for (seed, purpose, epoch, slot, image), so a resumed run repeats the uninterrupted
one and any rank can make any draw.
"""

import hashlib
import random


def key(seed: int, *parts: int | str) -> int:
    """A 63-bit integer from a seed and a purpose; equal parts give equal keys on every machine."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, *parts: int | str) -> random.Random:
    return random.Random(key(seed, *parts))
