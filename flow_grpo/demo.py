"""``flow-grpo demo``: reward services, gateway, training and both evaluations on this machine, with one command."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import tiny_world
from flow_grpo.runner import LocalStack, StackError
from tiny_world.prompts import WORLDS
from trainer.config import ConfigError, TrainConfig, load_config


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after a failure and 130 after Ctrl-C, each explained on stderr; no process outlives it."""
    options, overrides = _parser().parse_known_args(argv)
    folder = Path(os.path.normpath(options.out))
    if folder.name in ("", ".."):
        return _complain(f"--out {options.out} names no folder of its own")
    # Overrides are YAML, of which JSON's quoted strings are a part: no path is then taken for something else.
    overrides = [*overrides, f"--out={json.dumps(str(folder.parent))}", f"--name={json.dumps(folder.name)}"]
    try:
        config = load_config(options.recipe, overrides)
        services = rewards_needed(config, options.world)
        _say(f"[1/3] starting {', '.join(services)} and the gateway on free ports of this machine")
        replicas = replicas_wanted(config, os.cpu_count() or 1)
        with LocalStack(services, replicas, log_dir=folder.with_name(f"{folder.name}-services")) as stack:
            _say(f"[2/3] rewards answer at {stack.gateway_url}; loading torch and {config.model.path}")
            arguments = [str(options.recipe), "--overwrite", *overrides, f"--rewards.url={stack.gateway_url}"]
            if status := _train(arguments):
                return status
    except (ConfigError, StackError) as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        return _complain(f"{error}; pip install 'flow-grpo[demo]' brings what the demo needs")
    except KeyboardInterrupt:
        return _complain(f"stopped before its end; {folder} holds what was done", status=130)
    _say(f"[3/3] held-out prompts, the same seeds before and after\n{_table(folder)}\nreport: {folder / 'report.html'}")
    return 0


def rewards_needed(config: TrainConfig, world: str | None = None) -> dict[str, dict[str, str]]:
    """The recipe's rewards with their options: GenEval's detector looks for the shapes of the recipe's tiny world.

    Raises ConfigError if there is nothing to compare before and after.
    """
    if not config.evaluation.prompts:
        raise ConfigError("the demo compares before and after training, but the recipe's evaluation.prompts is empty")
    sources = (*config.prompts, *config.evaluation.prompts)
    world = world or _world([config.model.path, *(source.path for source in sources)])
    options = {"geneval": {"world": world} if world else {}}
    return {name: options.get(name, {}) for source in sources for name in source.rewards}


def replicas_wanted(config: TrainConfig, cores: int) -> dict[str, int]:
    """How many processes a reward shall have where one is too few.

    Reading a picture on one core takes longer than drawing it on two, so that OCR would be waited for.
    """
    trained = {name for source in config.prompts for name in source.rewards}
    return {"ocr": min(2, cores)} if "ocr" in trained else {}


def _world(paths: Iterable[str]) -> str | None:
    """The world that the recipe's ``tiny_world:FOLDER/WORLD...`` paths name, if they name one."""
    names = [Path(path).name for path in paths if path.startswith(tiny_world.PREFIX)]
    return next((world for name in names for world in WORLDS if name.split("_")[0] == world), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flow-grpo demo",
        description="Starts the reward services and the gateway, trains a recipe against them, evaluates before and "
        "after, and ends what it started. Any setting of the recipe can be overridden: --epochs=10",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", type=Path, default=Path("recipes/tiny_geneval.yaml"), help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="the run's folder; an earlier run is replaced (%(default)s)"
    )
    parser.add_argument("--world", choices=WORLDS, help="shapes GenEval looks for (default: what the recipe names)")
    return parser


def _train(arguments: Sequence[str]) -> int:
    # Threads that spin while they wait would take the cores from the services; read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from trainer import train

    return train.main(arguments)


def _table(folder: Path) -> str:
    from trainer.task_table import saved_table

    return saved_table(folder / "evaluation")


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(message: str, *, status: int = 1) -> int:
    print(f"flow-grpo demo: {message}", file=sys.stderr)
    return status
