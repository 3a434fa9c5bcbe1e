"""The short version of `make fuzz`: the seeds, and mutations of them."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))

from targets import TARGETS  # noqa: E402 - a folder of scripts, not a package

pytestmark = pytest.mark.unit

CORPUS = {name: sorted((FUZZ / "corpus" / name).iterdir()) for name in TARGETS}


@pytest.mark.parametrize(
    "path", [path for paths in CORPUS.values() for path in paths], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_every_seed_is_read_or_refused(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with a few places cut, overwritten, doubled, or filled from another seed."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 8)))
        other = draw(st.sampled_from(seeds))
        offset = draw(st.integers(0, len(other)))
        patch = draw(
            st.binary(max_size=8)
            | st.just(data[start:stop] * 2)
            | st.just(other[offset : offset + 16])
            | st.sampled_from(
                [b"null", b"-1", b"1e400", b"\\ud800", b"{}", b"[]", b'""', b"\xc0", b"\x80", b"\xff" * 4]
            )
        )
        data = data[:start] + patch + data[stop:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_near_a_seed_is_read_or_refused(name: str) -> None:
    seeds = [path.read_bytes() for path in CORPUS[name]]

    @settings(max_examples=300)
    @given(mutated(seeds))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()
