"""``flow-grpo score``: pictures on disk, scored by the gateway or by one reward service, one JSON line a picture.

Results stand in the archive's order. A run that is started again with the same arguments goes on where the last one
stopped: an item counts as done if picture, prompt, metadata, rewards and their versions are those it was scored with.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flow_grpo.archive import pictures
from flow_grpo.ledger import Ledger, LedgerError
from flow_grpo.pipeline import Settings, score_archive
from reward_api import ItemError, RewardClient, RewardRejected, RewardUnavailable
from trainer.prompt_records import PromptError
from trainer.task_table import Tally, counted_table, result


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if everything is scored, 1 if an item has an error or the run could not go on, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    settings = Settings(tuple(dict.fromkeys(options.reward)), options.batch, options.in_flight, options.deterministic)
    try:
        if not next(pictures(options.source), None):
            raise PromptError(f"{options.source}: holds no picture")
        with Ledger(options.out) as ledger:
            try:
                client = RewardClient(options.url, timeout_s=options.timeout)
                asyncio.run(score_archive(options.source, client, ledger, settings))
            except (RewardUnavailable, RewardRejected) as error:
                return _complain(f"{error}; what is scored is in {options.out}, the same command goes on from there")
            except KeyboardInterrupt:
                return _complain(f"stopped; the same command goes on from where {options.out} ends", status=130)
            if stale := ledger.set_aside():
                _say(f"results of other pictures or reward versions, moved to {options.out}.stale: {stale}")
            return _summarise(ledger)
    except (PromptError, LedgerError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename or options.out}: {error.strerror}")


def _summarise(ledger: Ledger) -> int:
    """Prints the table of every reward and, on stderr, the errors by code; the exit status."""
    tallies: dict[str, Tally] = {}
    codes: Counter[str] = Counter()
    lines = failed = 0
    for line, outcomes in ledger.results():
        lines += 1
        failures = {name: str(o.code) for name, o in outcomes.items() if isinstance(o, ItemError)}
        failed += bool(failures)
        codes.update(f"{name} {code}" for name, code in failures.items())
        for name, outcome in outcomes.items():
            tallies.setdefault(name, Tally()).add(line["tag"], line["prompt"], result(outcome))
    print(counted_table(tallies))
    _say(f"{lines - failed} of {lines} pictures scored, {ledger.resumed} of them before this run: {ledger.path}")
    if failed:
        told = ", ".join(f"{code}: {count}" for code, count in codes.most_common())
        _say(f"{failed} with errors ({told}); the same command tries them again")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flow-grpo score",
        description="Scores pictures on disk and prints each reward's table by task. "
        "The environment variable REWARD_TOKEN, where set, is sent as bearer token.",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="FOLDER_OR_JSONL",
        help='a JSONL of {"image", "prompt", "metadata"?, "rewards"?}; a folder that holds it as prompts.jsonl or '
        "metadata.jsonl; GenEval's 00000/metadata.jsonl and 00000/samples/; or pictures with NAME.json or NAME.txt",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8100", help="gateway or service (default: %(default)s)")
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME",
        help="of pictures whose line names none; repeatable; not needed where only one is on offer",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results, a JSON line a picture")
    parser.add_argument(
        "--batch",
        type=int,
        choices=range(1, 257),
        default=16,
        metavar="N",
        help="pictures read and sent together (default: %(default)s)",
    )
    parser.add_argument(
        "--in-flight",
        type=int,
        choices=range(1, 65),
        default=4,
        metavar="N",
        help="batches at once (default: %(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for a batch, retries included")
    parser.add_argument(
        "--deterministic", action="store_true", help="the same bits whatever is scored beside an item, at a price"
    )
    return parser


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _complain(message: str, *, status: int = 1) -> int:
    _say(f"flow-grpo score: {message}")
    return status
