import json
from pathlib import Path

import pytest

from flow_grpo.ledger import Ledger, LedgerError
from reward_api import ItemError, Score

pytestmark = pytest.mark.unit

GOOD = {"ocr": Score(0.5, {"lines": ["é"]})}
BAD = {"ocr": Score(1.0), "geneval": ItemError("bad_metadata", "why")}


def fill(path: Path, *digests: str) -> list[bytes]:
    with Ledger(path) as ledger:
        for digest in digests:
            ledger.append(digest, {"image": f"{digest}.png", "prompt": "p", "tag": "t"}, GOOD)
    return path.read_bytes().splitlines(keepends=True)


def test_a_line_keeps_what_was_scored_and_what_failed(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    with Ledger(path) as ledger:
        ledger.append("a", {"image": "a.png", "prompt": "p", "tag": "t"}, GOOD)
        ledger.append("b", {"image": "b.png", "prompt": "p", "tag": "t"}, BAD)
        ledger.flush()
        assert [(line["image"], outcomes) for line, outcomes in ledger.results()] == [("a.png", GOOD), ("b.png", BAD)]
    second = json.loads(path.read_text().splitlines()[1])
    assert second["results"]["geneval"] == {"error": {"code": "bad_metadata", "message": "why"}}
    assert second["results"]["ocr"] == {"score": 1.0, "details": {}}


def test_every_cut_of_the_last_line_is_mended(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    first, second = fill(path, "a", "b")
    for length in range(len(second)):
        path.write_bytes(first + second[:length])
        with Ledger(path) as ledger:
            assert ledger.has("a")
            assert not ledger.has("b")
            assert ledger.resumed == 1
            ledger.append("b", {"image": "b.png", "prompt": "p", "tag": "t"}, GOOD)
        assert path.read_bytes() == first + second


def test_failed_items_are_taken_out_to_be_scored_again(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    with Ledger(path) as ledger:
        for digest, outcomes in (("a", GOOD), ("b", BAD), ("c", GOOD)):
            ledger.append(digest, {"image": digest, "prompt": "p", "tag": "t"}, outcomes)
    with Ledger(path) as ledger:
        assert [ledger.has(digest) for digest in "abc"] == [True, False, True]
        assert [line["digest"] for line, _ in ledger.results()] == ["a", "c"]


def test_results_nobody_asked_about_are_set_aside_and_not_lost(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    lines = fill(path, "a", "b", "c", "d")
    with Ledger(path) as ledger:
        assert ledger.has("a")
        assert ledger.has("d")
        ledger.append("e", {"image": "e.png", "prompt": "p", "tag": "t"}, GOOD)
        assert ledger.set_aside() == 2
        assert ledger.resumed == 2
    assert [json.loads(line)["digest"] for line in path.read_text().splitlines()] == ["a", "d", "e"]
    assert (tmp_path / "out.jsonl.stale").read_bytes() == lines[1] + lines[2]
    with Ledger(path) as ledger:
        assert all(ledger.has(digest) for digest in "ade")
        assert ledger.set_aside() == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a shopping list", "last line is not the beginning of a result"),
        (b"milk\n", "line 1: is no result"),
        (b'{"digest": "a", "results": {}}\n', "line 1: is no result"),
        (b'{"digest": "a", "results": {"ocr": {}}}\n', "line 1: is no result"),
        (b'{"digest": 3, "results": {"ocr": {"score": 1}}}\n', "line 1: is no result"),
        (b"\xff\n", "line 1: is no result"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=message):
        Ledger(path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path):
    with pytest.raises(LedgerError, match=r"absent/out\.jsonl: No such file"):
        Ledger(tmp_path / "absent" / "out.jsonl")
