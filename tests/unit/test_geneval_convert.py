"""From mmdet's checkpoint files to the detector's directory: both namings, both file formats, and what is refused."""

import json
import os
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from drawn_weights import drawn_weights
from safetensors.torch import load_file

from flow_grpo.cli import main
from reward_services.geneval.checkpoint import read_checkpoint
from reward_services.geneval.coco import CLASSES
from reward_services.geneval.conversion import mmdet_3_names, transformers_state
from reward_services.weights import WeightsError

pytestmark = pytest.mark.unit

RECORDING = Path(__file__).parents[1] / "data" / "mask2former_small.npz"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    with np.load(RECORDING) as recorded:
        shapes = {name: tuple(shape) for name, shape in json.loads(str(recorded["shapes"])).items()}
    return drawn_weights(shapes, 1)


def mmdet_2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of mmdet 2, where a decoder layer attends across before it attends to itself."""
    renamed = {}
    for name, tensor in state.items():
        if "transformer_decoder" in name:
            name = name.replace(".cross_attn.", ".attentions.0.").replace(".self_attn.", ".attentions.1.")
        elif "pixel_decoder.encoder" in name:
            name = name.replace(".self_attn.", ".attentions.0.")
        if name.startswith("panoptic_head"):
            name = name.replace(".ffn.", ".ffns.0.")
        renamed[name] = tensor
    return renamed


def test_both_namings_give_the_same_weights(state: dict[str, torch.Tensor]) -> None:
    old = mmdet_2(state)
    assert set(old) != set(state)
    assert set(mmdet_3_names(old)) == set(mmdet_3_names(state)) == set(state)
    one, other = transformers_state(old), transformers_state(state)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_merged_patches_are_reordered(state: dict[str, torch.Tensor]) -> None:
    """What mmdet computes with torch's Unfold, transformers computes from slices."""
    from transformers.models.swin.modeling_swin import SwinPatchMerging

    prefix = "backbone.stages.1.downsample"
    merging = SwinPatchMerging(16)
    end = "layers.1.downsample."
    converted = transformers_state(state)
    merging.load_state_dict({name.partition(end)[2]: t for name, t in converted.items() if end in name})
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 16, 6, 4)).astype(np.float32))
    patches = torch.nn.Unfold(2, stride=2)(image).transpose(1, 2)
    norm = torch.nn.functional.layer_norm(patches, (64,), state[f"{prefix}.norm.weight"], state[f"{prefix}.norm.bias"])
    expected = norm @ state[f"{prefix}.reduction.weight"].T
    with torch.inference_mode():
        torch.testing.assert_close(merging(image.flatten(2).transpose(1, 2), (6, 4)), expected)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_becomes_a_directory(
    state: dict[str, torch.Tensor], tmp_path: Path, zipped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """mmdet publishes its files in torch's format from before 1.6."""
    file, out = tmp_path / "detector.pth", tmp_path / "new" / "detector"
    content = {"meta": {"mmdet_version": "2.23.0", "CLASSES": CLASSES}, "state_dict": mmdet_2(state)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert main(["convert-detector", str(file), str(out)]) == 0
    assert f"--option model={out}" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    assert {path.name for path in out.parent.iterdir()} == {"detector"}
    assert oct((out / "model.safetensors").stat().st_mode)[-3:] == "644"
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Mask2FormerForUniversalSegmentation"]
    assert [config["id2label"][str(index)] for index in range(80)] == list(CLASSES)
    weights = load_file(out / "model.safetensors")
    assert torch.equal(weights["class_predictor.weight"], state["panoptic_head.cls_embed.weight"])


class HistoryBuffer:
    """Pickles like mmengine's, whose name it is given below."""

    def __init__(self) -> None:
        self.max_length = 1000000
        self._log_history = np.linspace(0, 1, 5)
        self._count_history = np.array([1, 1, 1, 1, 1])
        self._last = np.float64(0.5)
        self._statistics_methods = {"min": HistoryBuffer.min}

    def min(self) -> float:
        return float(self._log_history.min())


def test_training_curves_are_left_behind(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "mmengine.logging.history_buffer"
    module = ModuleType(name)
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for package in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(HistoryBuffer, "__module__", name)
    for zipped in (True, False):
        file = tmp_path / f"{zipped}.pth"
        hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"epoch": 3}}
        content = {"state_dict": state, "message_hub": hub, "meta": {"seed": np.int64(3)}}
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(Exception, match="HistoryBuffer"):
            torch.load(file, weights_only=True)
        read = read_checkpoint(file)
        assert all(torch.equal(read[key], state[key]) for key in state)
        with pytest.raises(Exception, match="HistoryBuffer"):
            torch.load(file, weights_only=True)  # the permission was for one reading


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    file, trace = tmp_path / "trap.pth", tmp_path / "sprung"
    torch.save({"state_dict": {}, "meta": Trap(f"touch {trace}")}, file)
    with pytest.raises(WeightsError, match=r"cannot be read as weights .*GLOBAL posix\.system") as refused:
        read_checkpoint(file)
    assert not trace.exists()
    assert "weights_only" not in str(refused.value)


def test_files_that_are_no_checkpoint_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("garbage", "list", "empty", "torn", "old_trap", "numbered")
    garbage, list_, empty, torn, old_trap, numbered = (tmp_path / f"{name}.pth" for name in names)
    garbage.write_bytes(b"<html>404</html>" * 10)
    torch.save([1, 2], list_)
    torn.write_bytes(list_.read_bytes()[:-30])
    old_trap.write_bytes(pickle.dumps(Trap(f"touch {tmp_path / 'sprung'}"), protocol=4))
    torch.save({1: torch.zeros(1)}, numbered)
    empty.touch()
    cases = {
        tmp_path / "absent.pth": "there is no checkpoint file",
        garbage: "it is damaged or something else, take it from its source again",
        empty: "it is damaged or something else, take it from its source again",
        torn: "failed finding central directory): it is damaged",
        old_trap: "it is damaged or something else",
        list_: "holds no table of tensors",
        numbered: "holds no table of tensors",
    }
    for file, words in cases.items():
        assert main(["convert-detector", str(file), str(tmp_path / "out")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert str(file) in line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {**s, "panoptic_head.cls_embed.weight": torch.zeros(134, 32)}, "133 classes apart, not COCO's 80"),
        (lambda s: {k: v for k, v in s.items() if "backbone" not in k}, "no Mask2Former of mmdet with a Swin backbone"),
        (lambda s: {k: v for k, v in s.items() if "post_norm" not in k}, r"no model\.transformer_module.* 1 more"),
        (lambda s: {**s, "rpn_head.weight": torch.zeros(1)}, "rpn_head.weight too much"),
        (lambda s: {**s, "panoptic_head.mask_embed.0.bias": torch.zeros(7)}, r"shape \(7,\) instead of \(32,\)"),
    ],
)
def test_other_models_are_refused(
    state: dict[str, torch.Tensor], tmp_path: Path, change: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": change(dict(state))}, tmp_path / "other.pth")
    assert main(["convert-detector", str(tmp_path / "other.pth"), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)
    assert list(tmp_path.iterdir()) == [tmp_path / "other.pth"]


def test_what_is_there_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    assert main(["convert-detector", "any.pth", str(tmp_path / "out")]) == 1
    assert "not an empty directory" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(
    state: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": state}, tmp_path / "detector.pth")
    (tmp_path / "file").touch()
    assert main(["convert-detector", str(tmp_path / "detector.pth"), str(tmp_path / "file" / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'file' / 'out'} cannot be written" in line
