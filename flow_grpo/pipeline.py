"""From pictures on disk to lines of results: read, hash, decode, send, write, a few batches at a time."""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
from tqdm import tqdm

from flow_grpo.archive import Picture, pictures
from flow_grpo.ledger import Ledger
from reward_api import ErrorCode, Item, ItemError, Limits, Outcome, RewardClient, RewardInfo, RewardUnavailable
from reward_api.images import pixels_from_file
from trainer.prompt_records import PromptError

Outcomes = dict[str, Outcome]

_REFUSED = frozenset({ErrorCode.NO_REPLICA, ErrorCode.OVERLOADED})
"""What says nothing about an item, only about the server."""


@dataclass(frozen=True)
class Prepared:
    """A picture that has been read: what to send, or why it cannot be sent. None if it is done."""

    picture: Picture
    rewards: tuple[str, ...]
    digest: str
    item: Item | ItemError | None


@dataclass(frozen=True)
class Settings:
    """``rewards`` are asked of pictures whose line asks for none; ``in_flight`` batches of ``batch`` items at once."""

    rewards: tuple[str, ...]
    batch: int
    in_flight: int
    deterministic: bool


async def score_archive(source: Path, client: RewardClient, ledger: Ledger, settings: Settings) -> None:
    """Reads, sends and writes in a pipeline that holds at most ``in_flight`` + 1 batches of pictures.

    Raises PromptError for what is wrong with the archive, before anything is scored; RewardUnavailable and
    RewardRejected when the server cannot go on. What was scored until then is in the ledger.
    """
    async with client:
        offered = {info.name: info for info in await client.rewards()}
        total, asked = 0, set[str]()
        for picture in pictures(source):  # a fault of the last line shows before the first is scored
            total += 1
            asked.update(_asked(picture, settings, offered))
        _require(asked, offered, client.base_url)
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
                    read = (
                        asyncio.to_thread(_prepare, picture, _asked(picture, settings, offered), offered, ledger)
                        for picture in chunk
                    )
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


def _asked(picture: Picture, settings: Settings, offered: Mapping[str, RewardInfo]) -> tuple[str, ...]:
    """The picture's own rewards, else the command's, else the only one on offer. Raises PromptError."""
    if asked := picture.rewards or settings.rewards:
        return asked
    if len(offered) == 1:
        return tuple(offered)
    raise PromptError(f"--reward NAME is needed for {picture.name}; on offer are {', '.join(sorted(offered))}")


def _require(asked: set[str], offered: Mapping[str, RewardInfo], url: str) -> None:
    """Raises PromptError for rewards that are not on offer, RewardUnavailable for those that never were up."""
    if absent := asked - offered.keys():
        raise PromptError(f"{url} does not offer {', '.join(sorted(absent))}; it offers {', '.join(sorted(offered))}")
    if down := [name for name in sorted(asked) if not offered[name].version]:
        raise RewardUnavailable(f"{url}: no replica of {', '.join(down)} has been up yet")


def _prepare(picture: Picture, rewards: tuple[str, ...], offered: Mapping[str, RewardInfo], ledger: Ledger) -> Prepared:
    """Reads one picture; decodes it only if it is not done."""
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
    refused = [outcome.message for outcome in said if isinstance(outcome, ItemError) and outcome.code in _REFUSED]
    if said and len(refused) == len(said):
        raise RewardUnavailable(f"{client.base_url} scored none of {len(items)} pictures: {refused[0]}")
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


def _chunks(source: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    while chunk := list(islice(source, size)):
        yield chunk
