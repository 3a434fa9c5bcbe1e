from collections import Counter
from pathlib import Path

import pytest

from reward_services.ocr.reward import normalise, target_text
from trainer.config import PromptSource
from trainer.make_prompts import main
from trainer.ocr_prompts import compose, read_templates, read_texts, split
from trainer.prompt_records import PromptError
from trainer.prompts import load_prompts

pytestmark = pytest.mark.unit


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def targets(path: Path) -> list[str]:
    """What the OCR service will look for in a picture of each prompt."""
    prompts = load_prompts(PromptSource(path=str(path), rewards={"ocr": 1.0}))
    assert all(prompt.tag == "ocr" and prompt.metadata is None for prompt in prompts)
    return [target_text(prompt.text) or "" for prompt in prompts]


def test_a_prompt_quotes_the_text_where_the_template_has_its_place(tmp_path: Path):
    templates = read_templates(write(tmp_path / "t", "a sign  that says {text} at night", "", "{text} on a wall"))
    texts = read_texts(write(tmp_path / "w", "OPEN", "  Grüß Gott "))
    prompts = {line["prompt"] for line in compose(templates, texts, 4, seed=0)}
    assert prompts == {
        'a sign that says "OPEN" at night',
        'a sign that says "Grüß Gott" at night',
        '"OPEN" on a wall',
        '"Grüß Gott" on a wall',
    }


def test_texts_that_read_the_same_come_once(tmp_path: Path):
    assert read_texts(write(tmp_path / "w", "Open", "OPEN", "o pen", "Opera")) == ["Open", "Opera"]


def test_every_pair_comes_before_one_comes_again():
    templates, texts = [f"{n} {{text}}" for n in range(3)], ["a", "b", "c", "d"]
    counts = Counter(line["prompt"] for line in compose(templates, texts, 30, seed=0))
    assert len(counts) == 12
    assert set(counts.values()) == {2, 3}
    assert len({line["prompt"] for line in compose(templates, texts, 5, seed=0)}) == 5


def test_the_seed_decides():
    templates, texts = ["{text}"], [f"text {n}" for n in range(100)]
    assert compose(templates, texts, 50, 1) == compose(templates, texts, 50, 1) != compose(templates, texts, 50, 2)
    assert split(texts, 0.2, 1) == split(texts, 0.2, 1) != split(texts, 0.2, 2)


def test_held_out_texts_do_not_hang_on_the_files_order():
    texts = [f"text {n}" for n in range(50)]
    assert set(split(texts, 0.2, 1)[1]) == set(split(texts[::-1], 0.2, 1)[1])


def test_the_split_is_a_partition():
    texts = [f"text {n}" for n in range(50)]
    train, held_out = split(texts, 0.3, 0)
    assert len(held_out) == 15
    assert sorted(train + held_out) == sorted(texts)
    assert split(texts, 0.0, 0) == (texts, [])
    assert len(split(texts, 0.001, 0)[1]) == 1


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.99])
def test_a_share_that_leaves_nothing_is_refused(share: float):
    with pytest.raises(PromptError, match="held-out share"):
        split(["one", "two"], share, 0)


@pytest.mark.parametrize(
    ("read", "line", "message"),
    [
        (read_templates, "a sign", r"line 2: a template has \{text\} exactly once"),
        (read_templates, "{text} and {text}", r"line 2: a template has \{text\} exactly once"),
        (read_templates, 'a sign that says "{text}"', "line 2: a template has no double quotes"),
        (read_texts, 'a "quoted" word', "line 2: a text cannot hold a double quote"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, read, line: str, message: str):
    with pytest.raises(PromptError, match=message) as caught:
        read(write(tmp_path / "x", "a {text}", line))
    assert str(caught.value).startswith(str(tmp_path / "x"))


def test_an_empty_or_absent_file_is_named(tmp_path: Path):
    with pytest.raises(PromptError, match="x: is empty"):
        read_texts(write(tmp_path / "x", ""))
    with pytest.raises(PromptError, match=r"y: cannot be read \(No such file"):
        read_templates(tmp_path / "y")


def test_the_command_writes_two_sets_that_share_no_text(tmp_path: Path):
    """With the package's own templates and texts, and the target as the OCR service will find it."""
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    arguments = ["ocr", "--count", "2000", "--out", str(train), "--test", str(test), "--test-share", "0.1"]
    assert main([*arguments, "--test-count", "200"]) == 0
    seen, unseen = ({normalise(target) for target in targets(path)} for path in (train, test))
    assert len(targets(train)) == 2000
    assert len(targets(test)) == 200
    assert "" not in seen | unseen
    assert not seen & unseen
    first = train.read_bytes()
    assert main([*arguments, "--test-count", "200"]) == 0
    assert train.read_bytes() == first


def test_a_test_file_without_held_out_texts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["ocr", "--count", "5", "--out", str(tmp_path / "a"), "--test", str(tmp_path / "b")]) == 1
    assert "--test-share" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
