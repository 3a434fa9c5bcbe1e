"""``flow-grpo score``: pictures on disk, scored by the gateway or by one reward service, one JSON line a picture.

Results stand in the archive's order. A run that is started again with the same arguments goes on where the last one
stopped: an item counts as done if picture, prompt, metadata, rewards and their versions are those it was scored with.
"""

import argparse
import asyncio
import hashlib
import json
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
from tqdm import tqdm

from flow_grpo.archive import Picture, pictures
from flow_grpo.ledger import Ledger, LedgerError
from reward_api import (
    ErrorCode,
    Item,
    ItemError,
    Limits,
    Outcome,
    RewardClient,
    RewardInfo,
    RewardRejected,
    RewardUnavailable,
)
from reward_api.images import pixels_from_file
from trainer.prompt_records import PromptError
from trainer.task_table import Tally, counted_table, result

Outcomes = dict[str, Outcome]


@dataclass(frozen=True)
class Prepared:
    """A picture that has been read: what to send, or why it cannot be sent. None if it is done."""

    picture: Picture
    rewards: tuple[str, ...]
    digest: str
    item: Item | ItemError | None


@dataclass(frozen=True)
class Settings:
    """``rewards`` are asked of pictures whose line asks for none; ``in_flight`` requests of ``batch`` items at once."""

    rewards: tuple[str, ...]
    batch: int
    in_flight: int
    deterministic: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if everything is scored, 1 if an item has an error or the run could not go on, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    settings = Settings(tuple(dict.fromkeys(options.reward)), options.batch, options.in_flight, options.deterministic)
    try:
        total = sum(1 for _ in pictures(options.source))  # a fault of the last line shows before the first is scored
        if not total:
            raise PromptError(f"{options.source}: holds no picture")
        with Ledger(options.out) as ledger:
            try:
                client = RewardClient(options.url, timeout_s=options.timeout)
                asyncio.run(_score_all(options.source, total, client, ledger, settings))
            except (RewardUnavailable, RewardRejected) as error:
                return _complain(f"{error}; what is scored is in {options.out}, the same command goes on from there")
            except KeyboardInterrupt:
                return _complain(f"stopped; the same command goes on from where {options.out} ends", status=130)
            if stale := ledger.set_aside():
                _say(f"{stale} results of other pictures or reward versions moved to {options.out}.stale")
            return _summarise(ledger)
    except (PromptError, LedgerError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename or options.out}: {error.strerror}")


async def _score_all(source: Path, total: int, client: RewardClient, ledger: Ledger, settings: Settings) -> None:
    """Reads, sends and writes in a pipeline that holds at most ``in_flight`` + 1 batches of pictures."""
    async with client:
        offered = {info.name: info for info in await client.rewards()}
        _require(offered, settings.rewards, source, client.base_url)
        waiting: deque[tuple[list[Prepared], asyncio.Task[list[Outcomes]]]] = deque()
        errors = 0
        with tqdm(total=total, desc="score", unit="image", dynamic_ncols=True) as bar:

            async def write_oldest() -> None:
                nonlocal errors
                batch, task = waiting[0]
                errors += _write(ledger, batch, await task)
                waiting.popleft()
                bar.update(len(batch))
                bar.set_postfix(errors=errors, refresh=False)

            try:
                for chunk in _chunks(pictures(source), settings.batch):
                    read = [
                        asyncio.to_thread(_prepare, picture, settings.rewards, offered, ledger) for picture in chunk
                    ]
                    batch = await asyncio.gather(*read)
                    waiting.append((batch, asyncio.create_task(_score(client, batch, settings.deterministic))))
                    if len(waiting) >= settings.in_flight:
                        await write_oldest()
                while waiting:
                    await write_oldest()
            finally:
                for _, task in waiting:
                    task.cancel()
                await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)


def _require(offered: Mapping[str, RewardInfo], rewards: Sequence[str], source: Path, url: str) -> None:
    """Raises PromptError unless every picture asks for something, RewardUnavailable unless it is on offer now."""
    asked = set(rewards)
    for picture in pictures(source):
        asked.update(picture.rewards)
        if not picture.rewards and not rewards:
            raise PromptError(f"--reward NAME is needed; {url} offers {', '.join(sorted(offered))}")
    if absent := asked - offered.keys():
        raise PromptError(f"{url} does not offer {', '.join(sorted(absent))}; it offers {', '.join(sorted(offered))}")
    if down := [name for name in sorted(asked) if not offered[name].version]:
        raise RewardUnavailable(f"{url}: no replica of {', '.join(down)} has been up yet")


def _prepare(picture: Picture, rewards: tuple[str, ...], offered: Mapping[str, RewardInfo], ledger: Ledger) -> Prepared:
    """Reads one picture; decodes it only if it is not done."""
    rewards = picture.rewards or rewards
    data: bytes | None = None
    fault = ""
    try:
        data = picture.path.read_bytes()
    except OSError as error:
        fault = f"{picture.path} cannot be read ({error.strerror})"
    digest = _digest(picture, data, [(name, offered[name].version) for name in rewards])
    if ledger.has(digest):
        return Prepared(picture, rewards, digest, None)
    item: Item | ItemError
    if data is None:
        item = ItemError(ErrorCode.BAD_IMAGE, fault)
    elif unsendable := _unsendable(picture):
        item = unsendable
    else:
        pixels = pixels_from_file(data, Limits())
        item = pixels if isinstance(pixels, ItemError) else Item(pixels, picture.prompt, picture.metadata, rewards)
    return Prepared(picture, rewards, digest, item)


def _unsendable(picture: Picture) -> ItemError | None:
    """JSON holds what the wire cannot carry: lone surrogates, integers of more than 64 bits."""
    try:
        msgspec.msgpack.encode([picture.prompt, picture.metadata])
    except (ValueError, OverflowError, TypeError) as error:
        return ItemError(ErrorCode.BAD_METADATA, f"prompt or metadata cannot be sent: {error}")
    return None


def _digest(picture: Picture, data: bytes | None, rewards: Sequence[tuple[str, str]]) -> str:
    """128 bits over all that decides the item's results, and its name."""
    content = None if data is None else hashlib.blake2b(data, digest_size=16).hexdigest()
    whole = [picture.name, content, picture.prompt, picture.metadata, picture.tag, sorted(rewards)]
    text = json.dumps(whole, sort_keys=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


async def _score(client: RewardClient, batch: Sequence[Prepared], deterministic: bool) -> list[Outcomes]:
    """Outcomes by place; empty where the item is done. Raises RewardUnavailable if no item got further than a queue."""
    items = [prepared.item for prepared in batch if isinstance(prepared.item, Item)]
    answers = await client.score(items, deterministic=deterministic) if items else []
    said = [outcome for answer in answers for outcome in answer.values()]
    if said and all(isinstance(outcome, ItemError) and outcome.retryable for outcome in said):
        first = said[0]
        assert isinstance(first, ItemError)
        raise RewardUnavailable(f"{client.base_url} scored none of {len(items)} pictures: {first.message}")
    answered = iter(answers)
    outcomes: list[Outcomes] = []
    for prepared in batch:
        if isinstance(prepared.item, ItemError):
            outcomes.append(dict.fromkeys(prepared.rewards, prepared.item))
        else:
            outcomes.append(next(answered) if prepared.item else {})
    return outcomes


def _write(ledger: Ledger, batch: Sequence[Prepared], outcomes: Sequence[Outcomes]) -> int:
    """Appends what is new and returns how many items have an error. An item that comes twice is written once."""
    errors = 0
    for prepared, answer in zip(batch, outcomes, strict=True):
        if prepared.item is None or ledger.has(prepared.digest):
            continue
        picture = prepared.picture
        results = {
            name: answer.get(name, ItemError(ErrorCode.SCORER_FAILED, f"the answer holds no {name}"))
            for name in prepared.rewards
        }
        described = {"image": picture.name, "prompt": picture.prompt, "tag": _tag(picture, results)}
        ledger.append(prepared.digest, described, results)
        errors += any(isinstance(outcome, ItemError) for outcome in results.values())
    ledger.flush()
    return errors


def _tag(picture: Picture, results: Outcomes) -> str:
    """The task the line names, or the one a reward read off the prompt."""
    if picture.metadata is None:
        for outcome in results.values():
            if not isinstance(outcome, ItemError) and isinstance(tag := outcome.details.get("tag"), str):
                return tag
    return picture.tag


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


def _chunks(source: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    while chunk := list(islice(source, size)):
        yield chunk


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
        "--reward", action="append", default=[], metavar="NAME", help="of pictures whose line names none; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results, a JSON line a picture")
    parser.add_argument("--batch", type=_positive, default=16, help="pictures a request (default: %(default)s)")
    parser.add_argument("--in-flight", type=_positive, default=4, help="requests at once (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for a request, retries included")
    parser.add_argument(
        "--deterministic", action="store_true", help="the same bits whatever is scored beside an item, at a price"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _complain(message: str, *, status: int = 1) -> int:
    _say(f"flow-grpo score: {message}")
    return status
