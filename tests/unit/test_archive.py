import json
from pathlib import Path

import pytest

from flow_grpo.archive import Picture, pictures
from trainer.prompt_records import PromptError

pytestmark = pytest.mark.unit

COLORS = {
    "tag": "colors",
    "include": [{"class": "cat", "count": 1, "color": "red"}],
    "prompt": "a photo of a red cat",
}


def jsonl(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_jsonl_names_its_pictures_from_its_own_folder(tmp_path: Path):
    path = jsonl(
        tmp_path / "set" / "list.jsonl",
        {"image": "a/1.png", "prompt": "one", "metadata": {"x": 1}, "rewards": ["ocr", "ocr", "pickscore"]},
        {"image": "/elsewhere/2.png", "prompt": "two"},
        {"file_name": "3.png"} | COLORS | {"seed": 7},
    )
    assert list(pictures(path)) == [
        Picture("a/1.png", tmp_path / "set/a/1.png", "one", {"x": 1}, "prompt", ("ocr", "pickscore")),
        Picture("/elsewhere/2.png", Path("/elsewhere/2.png"), "two", None, "prompt", ()),
        Picture("3.png", tmp_path / "set/3.png", COLORS["prompt"], COLORS, "colors", ()),
    ]


@pytest.mark.parametrize("name", ["prompts.jsonl", "metadata.jsonl"])
def test_a_folder_may_hold_the_list(tmp_path: Path, name: str):
    jsonl(tmp_path / name, {"image": "1.png", "prompt": "one"})
    touch(tmp_path / "1.png", tmp_path / "not_listed.png")
    assert [(picture.path, picture.prompt) for picture in pictures(tmp_path)] == [(tmp_path / "1.png", "one")]


def test_genevals_layout_is_read_in_order(tmp_path: Path):
    for index, prompt in enumerate(["one", "two"]):
        folder = tmp_path / f"{index:05d}"
        jsonl(folder / "metadata.jsonl", COLORS | {"prompt": prompt})
        touch(folder / "samples" / "00001.png", folder / "samples" / "00000.png", folder / "grid.png")
    found = list(pictures(tmp_path))
    assert [picture.name for picture in found] == [
        "00000/samples/00000.png",
        "00000/samples/00001.png",
        "00001/samples/00000.png",
        "00001/samples/00001.png",
    ]
    assert [picture.prompt for picture in found] == ["one", "one", "two", "two"]
    assert found[2].metadata == COLORS | {"prompt": "two"}


def test_a_file_beside_each_picture_describes_it(tmp_path: Path):
    touch(tmp_path / "b.png", tmp_path / "a.JPG", tmp_path / "readme.md")
    (tmp_path / "a.txt").write_text(" a cat\n")
    (tmp_path / "b.json").write_text(json.dumps(COLORS, indent=1))
    assert [(picture.name, picture.prompt, picture.metadata) for picture in pictures(tmp_path)] == [
        ("a.JPG", "a cat", None),
        ("b.png", COLORS["prompt"], COLORS),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ({"prompt": "one"}, 'line 2: needs an "image"'),
        ({"image": "", "prompt": "one"}, 'line 2: needs an "image"'),
        ({"image": "1.png"}, 'line 2: needs a non-empty "prompt"'),
        ({"image": "1.png", "prompt": "one", "metadata": [1]}, 'line 2: "metadata" is not a JSON object'),
        ({"image": "1.png", "prompt": "one", "rewards": "ocr"}, 'line 2: "rewards" is not a list of names'),
        ({"image": "1.png", "prompt": "one", "rewards": [1]}, 'line 2: "rewards" is not a list of names'),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, line: object, message: str):
    path = jsonl(tmp_path / "list.jsonl", {"image": "0.png", "prompt": "zero"}, line)
    with pytest.raises(PromptError, match=message) as caught:
        list(pictures(path))
    assert str(caught.value).startswith(str(path))


def test_a_layout_that_is_not_whole_is_named(tmp_path: Path):
    with pytest.raises(PromptError, match=r"absent: cannot be read \(No such file"):
        list(pictures(tmp_path / "absent"))
    metadata = jsonl(tmp_path / "geneval" / "00000" / "metadata.jsonl", COLORS, COLORS)
    with pytest.raises(PromptError, match=r"metadata\.jsonl: has 2 lines"):
        list(pictures(tmp_path / "geneval"))
    jsonl(metadata, COLORS)
    with pytest.raises(PromptError, match="samples: cannot be read"):
        list(pictures(tmp_path / "geneval"))
    (metadata.parent / "samples").mkdir()
    with pytest.raises(PromptError, match="samples: holds no picture"):
        list(pictures(tmp_path / "geneval"))
    touch(tmp_path / "plain" / "a.png")
    with pytest.raises(PromptError, match=r"a\.png: has no prompt: .*a\.json or a\.txt beside it"):
        list(pictures(tmp_path / "plain"))
