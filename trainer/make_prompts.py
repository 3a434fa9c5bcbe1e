"""``flow-grpo prompts``: writes prompt sets as JSONL, for training and for a test that training never saw."""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tiny_world.prompts import Metadata, picture_key
from trainer import ocr_prompts
from trainer.geneval_prompts import FAMILIES, TRAINING_MIX, generate
from trainer.prompt_records import PromptError, numbered_lines, read_object, read_record

_SETS = Path(__file__).parent / "prompt_sets"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 with a sentence on stderr; what was written is counted there as well."""
    options = _parser().parse_args(argv)
    make: Callable[[argparse.Namespace], None] = options.make
    try:
        make(options)
    except PromptError as error:
        sys.stderr.write(f"flow-grpo prompts: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"flow-grpo prompts: {error.filename}: cannot be written ({error.strerror})\n")
        return 1
    return 0


def pictures_of(path: Path) -> set[str]:
    """What the prompts of a GenEval JSONL ask for, each in any order of its objects. Raises PromptError."""
    keys = set()
    for where, line in numbered_lines(path):
        metadata = read_record(read_object(line, where), where).metadata
        try:
            keys.add(picture_key(metadata or {}))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise PromptError(f"{where}: is not one of GenEval's metadata lines") from None
    return keys


def _geneval(options: argparse.Namespace) -> None:
    exclude = {key for path in options.exclude for key in pictures_of(path)}
    lines = generate(options.count, options.seed, options.mix, exclude)
    _write(options.out, lines)
    distinct = {line["prompt"]: line["tag"] for line in lines}
    counts, different = Counter(line["tag"] for line in lines), Counter(distinct.values())
    for task in FAMILIES:
        if counts[task]:
            sys.stderr.write(f"  {task:<14}{counts[task]:>8} prompts, {different[task]} different\n")


def _ocr(options: argparse.Namespace) -> None:
    if bool(options.test) != bool(options.test_share):
        raise PromptError("--test FILE and a --test-share above 0 go together")
    templates = ocr_prompts.read_templates(options.templates)
    texts, held_out = ocr_prompts.split(ocr_prompts.read_texts(options.words), options.test_share, options.seed)
    _write(options.out, ocr_prompts.compose(templates, texts, options.count, options.seed))
    if options.test:
        _write(options.test, ocr_prompts.compose(templates, held_out, options.test_count, options.seed))
    sys.stderr.write(f"  {len(templates)} templates, {len(texts)} texts to train on, {len(held_out)} held out\n")


def _write(path: Path, lines: Sequence[Metadata]) -> None:
    """All or nothing: written aside, then renamed."""
    aside = path.with_name(path.name + ".part")
    aside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    aside.replace(path)
    sys.stderr.write(f"{path}: {len(lines)} prompts\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flow-grpo prompts", description="Writes a prompt set as JSONL. The same arguments give the same file."
    )
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    geneval = kinds.add_parser("geneval", help="GenEval's six tasks over its 80 classes and ten colors")
    geneval.set_defaults(make=_geneval)
    geneval.add_argument(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        metavar="JSONL",
        help="GenEval prompts to keep out, the same picture in other words included; repeatable",
    )
    geneval.add_argument(
        "--mix",
        type=_mix,
        default=TRAINING_MIX,
        metavar="TASK=SHARE,...",
        help="shares of the tasks; default: " + ",".join(f"{task}={share}" for task, share in TRAINING_MIX.items()),
    )
    ocr = kinds.add_parser("ocr", help="texts to be written in the picture, from templates and a list of texts")
    ocr.set_defaults(make=_ocr)
    ocr.add_argument(
        "--templates",
        type=Path,
        default=_SETS / "ocr_templates.txt",
        metavar="FILE",
        help=f"a template a line, with {ocr_prompts.PLACE} for the text; default: 24 of this package",
    )
    ocr.add_argument(
        "--words",
        type=Path,
        default=_SETS / "ocr_words.txt",
        metavar="FILE",
        help="a text a line, of one word or several; default: a short list of this package",
    )
    ocr.add_argument("--test", type=Path, metavar="FILE", help="write prompts of held-out texts here")
    ocr.add_argument("--test-share", type=float, default=0.0, metavar="SHARE", help="of the texts that are held out")
    ocr.add_argument("--test-count", type=_positive, default=1000, metavar="N", help="default: %(default)s")
    for kind in (geneval, ocr):
        kind.add_argument("--count", type=_positive, required=True, metavar="N", help="prompts to write")
        kind.add_argument("--seed", type=int, default=0, help="default: %(default)s")
        kind.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _mix(text: str) -> dict[str, float]:
    shares = {}
    for part in text.split(","):
        task, _, share = part.partition("=")
        if task not in FAMILIES:
            raise argparse.ArgumentTypeError(f"{task!r} is none of the tasks {', '.join(FAMILIES)}")
        try:
            shares[task] = float(share)
        except ValueError:
            shares[task] = math.nan
        if not math.isfinite(shares[task]):
            raise argparse.ArgumentTypeError(f"{part!r} is not TASK=SHARE")
    return shares
