"""Prompts of Hugging Face datasets that lie on this machine."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.config import PromptSource
from trainer.prompt_records import PromptError
from trainer.prompts import PromptMix, load_prompts

pytestmark = pytest.mark.unit

POSITION = {
    "tag": "position",
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    "prompt": "a photo of a dog left of a cat",
}
COUNTING = {
    "tag": "counting",
    "include": [{"class": "cat", "count": 2}],
    "exclude": [{"class": "cat", "count": 3}],
    "prompt": "a photo of two cats",
}


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with its cache inside the test's folder and its progress bars off."""
    module = pytest.importorskip("datasets", exc_type=ImportError)
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    module.disable_progress_bars()
    return module


def source(name: Path | str, **settings: Any) -> PromptSource:
    return PromptSource(**({"path": f"datasets:{name}", "rewards": {"ocr": 1.0}} | settings))


def test_a_parquet_file_gives_a_prompt_a_row(datasets: Any, tmp_path: Path):
    path = tmp_path / "a.parquet"
    rows = {"caption": ["a cat", "ein schönes Bild"], "tag": ["animal", None], "number": [1, 2]}
    datasets.Dataset.from_dict(rows).to_parquet(str(path))
    prompts = load_prompts(source(path, column="caption"))
    assert [(prompt.text, prompt.metadata, prompt.tag) for prompt in prompts] == [
        ("a cat", None, "animal"),
        ("ein schönes Bild", None, "prompt"),
    ]
    assert prompts[0].rewards == {"ocr": 1.0}


def test_genevals_metadata_survives_arrow(datasets: Any, tmp_path: Path):
    """As JSON text, and as columns, where Arrow gives every clause every field."""
    texts = tmp_path / "texts.parquet"
    lines = [POSITION, COUNTING]
    rows = {"prompt": [line["prompt"] for line in lines], "metadata": [json.dumps(line) for line in lines]}
    datasets.Dataset.from_dict(rows).to_parquet(str(texts))
    assert [(prompt.metadata, prompt.tag) for prompt in load_prompts(source(texts))] == [
        (POSITION, "position"),
        (COUNTING, "counting"),
    ]
    columns = tmp_path / "columns.jsonl"
    colored = {
        "tag": "colors",
        "include": [{"class": "cat", "count": 1, "color": "red"}],
        "prompt": "a photo of a red cat",
    }
    columns.write_text(json.dumps(COUNTING) + "\n" + json.dumps(colored) + "\n")
    assert [prompt.metadata for prompt in load_prompts(source(columns))] == [COUNTING, colored]


def test_a_folder_of_files_and_a_saved_dataset_are_read(datasets: Any, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text('{"prompt": "one"}\n')
    (tmp_path / "folder" / "test.jsonl").write_text('{"prompt": "two"}\n')
    assert [prompt.text for prompt in load_prompts(source(tmp_path / "folder"))] == ["one"]
    assert [prompt.text for prompt in load_prompts(source(tmp_path / "folder", split="test"))] == ["two"]

    single = datasets.Dataset.from_dict({"prompt": ["three"]})
    single.save_to_disk(str(tmp_path / "single"))
    datasets.DatasetDict({"train": single}).save_to_disk(str(tmp_path / "several"))
    assert [prompt.text for prompt in load_prompts(source(tmp_path / "single"))] == ["three"]
    assert [prompt.text for prompt in load_prompts(source(tmp_path / "several"))] == ["three"]


def test_a_dataset_mixes_with_a_file(datasets: Any, tmp_path: Path):
    datasets.Dataset.from_dict({"prompt": ["from the dataset"]}).to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "b.txt").write_text("from the file\n")
    file = PromptSource(path=str(tmp_path / "b.txt"), rewards={"pickscore": 1.0})
    drawn = PromptMix([source(tmp_path / "a.parquet"), file], seed=0).epoch(0, 100)
    assert {(prompt.text, *prompt.rewards) for prompt in drawn} == {
        ("from the dataset", "ocr"),
        ("from the file", "pickscore"),
    }


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"prompt": [None]}, {}, 'row 2: needs a non-empty "prompt"'),
        ({"metadata": ["{"]}, {}, "row 2, metadata: is not JSON"),
        ({"metadata": ["[1, 2]"]}, {}, 'row 2: "metadata" is not a JSON object'),
        ({"metadata": ["cats"]}, {}, 'row 2: "metadata" is not a JSON object'),
        ({}, {"column": "caption"}, "has no column 'caption'; its columns are prompt, metadata"),
        ({}, {"split": "test[:1]x"}, "cannot be loaded"),
    ],
)
def test_faults_name_the_dataset_and_the_row(
    datasets: Any, tmp_path: Path, row: dict[str, list[Any]], settings: dict[str, str], message: str
):
    path = tmp_path / "a.parquet"
    second = {"prompt": ["b"], "metadata": ["{}"]} | row
    rows = {key: [first, *second[key]] for key, first in {"prompt": "a", "metadata": "{}"}.items()}
    datasets.Dataset.from_dict(rows).to_parquet(str(path))
    with pytest.raises(PromptError) as caught:
        load_prompts(source(path, **settings))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_name_that_is_nowhere_says_what_it_may_lack(datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(PromptError, match=r"nobody/nothing: the split 'train' cannot be loaded .* network"):
        load_prompts(source("nobody/nothing"))
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(PromptError, match=r"a\.xlsx: a dataset's file ends in one of \.parquet"):
        load_prompts(source(tmp_path / "a.xlsx"))


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptError, match=r"some/set: .*pip install 'flow-grpo\[datasets\]'"):
        load_prompts(source("some/set"))


def test_a_datasets_settings_belong_to_a_dataset():
    with pytest.raises(ValueError, match="split, column belongs to a dataset, whose path begins with datasets:"):
        PromptSource(path="a.jsonl", rewards={"ocr": 1.0}, split="test", column="caption")
