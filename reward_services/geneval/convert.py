"""`flow-grpo convert-detector`: the checkpoint of GenEval's detector as a directory for ``detector=mask2former``."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from reward_services.geneval.checkpoint import PUBLISHED, read_checkpoint
from reward_services.geneval.conversion import State, configuration, transformers_state
from reward_services.weights import WeightsError


def main(argv: Sequence[str]) -> int:
    """Converts one checkpoint; 0, or 1 with one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        convert(args.checkpoint, args.out)
    except WeightsError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{args.out} cannot be written ({error.strerror}): name a directory that can be")
    print(f"wrote {args.out}: flow-grpo serve geneval --option detector=mask2former --option model={args.out}")  # noqa: T201
    return 0


def _complain(message: str) -> int:
    print(f"flow-grpo: convert-detector: {message}", file=sys.stderr)  # noqa: T201
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flow-grpo convert-detector",
        description="Converts GenEval's detector, mmdet's mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, into a "
        "directory of safetensors and configuration that needs neither mmdet nor mmcv. Nothing in the checkpoint is "
        "executed.",
        epilog=f"The checkpoint: {PUBLISHED}",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the .pth file, of mmdet 2 or 3")
    parser.add_argument("out", type=Path, metavar="OUT", help="a directory that does not exist yet, or is empty")
    return parser


def convert(checkpoint: Path, out: Path) -> None:
    """Write ``out`` with config.json and model.safetensors, aside first. Raises WeightsError or OSError."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise WeightsError(f"{out} exists and is not an empty directory: name another one")
    save(read_checkpoint(checkpoint), out)


def save(state: State, out: Path) -> None:
    """mmdet's weights as transformers' model in the directory ``out``. Raises WeightsError."""
    from safetensors.torch import save_file
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(**configuration(state))
    with torch.device("meta"):
        model = Mask2FormerForUniversalSegmentation(config)
    weights = {name: tensor.float() for name, tensor in transformers_state(state).items()}
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in _UNUSED}
    faults = [f"no {name}" for name in sorted(wanted.keys() - weights)]
    faults += [f"{name} too much" for name in sorted(weights.keys() - wanted)]
    faults += [
        f"{name} of shape {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    if faults:
        raise WeightsError(
            f"the checkpoint is no Mask2Former of mmdet that transformers can run: {faults[0]}"
            + (f", and {len(faults) - 1} more" if len(faults) > 1 else "")
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        unused = {name: torch.ones(model.state_dict()[name].shape) for name in _UNUSED}
        save_file({**weights, **unused}, aside / "model.safetensors", metadata={"format": "pt"})
        config.architectures = [type(model).__name__]
        config.save_pretrained(aside)
        aside.chmod(0o755)
        (aside / "model.safetensors").chmod(0o644)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# Of the training loss, and a norm whose output Mask2Former does not look at.
_UNUSED = frozenset(
    {
        "criterion.empty_weight",
        "model.pixel_level_module.encoder.swin.layernorm.weight",
        "model.pixel_level_module.encoder.swin.layernorm.bias",
    }
)
