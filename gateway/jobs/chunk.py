"""One claimed chunk: what is known already, what must be scored, and what becomes of it."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from gateway.jobs.job import Claim, read_item, write_details
from gateway.jobs.leases import Leases, Place
from gateway.jobs.store import ImageStore
from reward_api import ErrorCode, Item, ItemError, Outcome, RewardClient, RewardRejected, RewardUnavailable

logger = logging.getLogger(__name__)

PAUSE_CAP_S = 60.0
_NOT_OF_THE_ITEMS = frozenset({401, 403, 404, 408, 429})  # a wrong token or address, or a bad moment


def pause_s(troubles: int) -> float:
    """Seconds until the next try, after `troubles` tries in a row that scored nothing."""
    return min(2.0 ** min(troubles, 16), PAUSE_CAP_S)


def settle(outcomes: Mapping[Place, Outcome], claim: Claim, *, tries: int) -> tuple[dict[Place, Outcome], float]:
    """(what is to be recorded, seconds until the rest is tried again).

    An error that may pass by itself stands only after `tries` tries in a row without one new score.
    """
    scored = any(not isinstance(outcome, ItemError) for outcome in outcomes.values())
    last = not scored and claim.troubles + 1 >= tries
    final = {
        place: outcome
        for place, outcome in outcomes.items()
        if last or not (isinstance(outcome, ItemError) and outcome.retryable)
    }
    return final, pause_s(0 if scored else claim.troubles)


async def score_claim(
    claim: Claim, leases: Leases, store: ImageStore, client: RewardClient
) -> tuple[dict[Place, Outcome], dict[str, str]]:
    """(an outcome for each open place, the versions they are of). Nothing in the table is scored again."""
    places = {(task.number, reward) for task in claim.tasks for reward in task.rewards}
    try:
        versions = {info.name: info.version for info in await client.rewards()}
    except RewardUnavailable as error:
        return dict.fromkeys(places, ItemError(ErrorCode.NO_REPLICA, str(error))), {}
    except RewardRejected as error:
        return dict.fromkeys(places, _refused(error)), {}

    outcomes = await asyncio.to_thread(leases.known, claim, versions)
    for place in places - outcomes.keys():
        if place[1] not in versions:
            outcomes[place] = ItemError(ErrorCode.UNKNOWN_REWARD, f"the gateway no longer serves {place[1]!r}")
        elif not versions[place[1]]:
            outcomes[place] = ItemError(ErrorCode.NO_REPLICA, f"no replica of {place[1]!r} has been up yet")

    asked: dict[str, tuple[Item, list[Place]]] = {}  # by content: the same content is scored once
    for task in claim.tasks:
        open_rewards = tuple(reward for reward in task.rewards if (task.number, reward) not in outcomes)
        try:
            item = read_item(replace(task, rewards=open_rewards), await asyncio.to_thread(store.get, task.image))
        except ValueError as error:
            outcomes |= {
                (task.number, reward): ItemError(ErrorCode.SCORER_FAILED, str(error)) for reward in open_rewards
            }
            continue
        if open_rewards:
            item, wanted = asked.get(task.key, (item, []))
            merged = tuple(dict.fromkeys(item.rewards + open_rewards))
            asked[task.key] = replace(item, rewards=merged), wanted + [(task.number, name) for name in open_rewards]
    if asked:
        outcomes |= await _ask(asked, client, deterministic=claim.deterministic)
    return outcomes, versions


def run_chunk(
    chunk_id: str,
    token: str,
    leases: Leases,
    store: ImageStore,
    client: Callable[[], RewardClient],
    *,
    tries: int,
    max_claims: int,
    clock: Callable[[], float] = time.time,
) -> None:
    """What a worker does with a message: claim, score, record. A message out of date does nothing."""
    claim = leases.claim(chunk_id, token, clock())
    if claim is None:
        logger.info("chunk %s is no longer this message's", chunk_id, extra={"chunk": chunk_id})
        return
    started = clock()
    if claim.claims > max_claims:
        dead = ItemError(ErrorCode.SCORER_FAILED, f"{max_claims} workers in a row died over the items of this chunk")
        outcomes: dict[Place, Outcome] = {(task.number, name): dead for task in claim.tasks for name in task.rewards}
        versions: dict[str, str] = {}
    else:
        outcomes, versions = asyncio.run(_with(client, claim, leases, store))
    final, again_in_s = settle(outcomes, claim, tries=tries)
    ended = leases.record(claim, final, versions, clock(), again_in_s=again_in_s)
    fields = {
        "job": claim.job_id,
        "chunk": chunk_id,
        "scored": sum(not isinstance(outcome, ItemError) for outcome in final.values()),
        "failed": sum(isinstance(outcome, ItemError) for outcome in final.values()),
        "later": len(outcomes) - len(final),
        "seconds": round(clock() - started, 3),
    }
    logger.info("chunk %(chunk)s: %(scored)d scored, %(failed)d failed, %(later)d later", fields, extra=fields)
    if ended:
        logger.info("job %s done", claim.job_id, extra={"job": claim.job_id})


async def _with(
    client: Callable[[], RewardClient], claim: Claim, leases: Leases, store: ImageStore
) -> tuple[dict[Place, Outcome], dict[str, str]]:
    async with client() as connected:
        return await score_claim(claim, leases, store, connected)


async def _ask(
    asked: Mapping[str, tuple[Item, list[Place]]], client: RewardClient, *, deterministic: bool
) -> dict[Place, Outcome]:
    try:
        answers = await client.score([item for item, _ in asked.values()], deterministic=deterministic)
    except RewardUnavailable as error:
        fault = ItemError(ErrorCode.NO_REPLICA, str(error))
        return {place: fault for _, places in asked.values() for place in places}
    except RewardRejected as error:
        return {place: _refused(error) for _, places in asked.values() for place in places}
    return {
        (number, reward): _storable(answer[reward])
        for (_, places), answer in zip(asked.values(), answers, strict=True)
        for number, reward in places
    }


def _storable(outcome: Outcome) -> Outcome:
    if isinstance(outcome, ItemError):
        return outcome
    try:
        write_details(outcome)
    except (TypeError, ValueError) as error:
        return ItemError(ErrorCode.SCORER_FAILED, f"the score came with details that are no JSON: {error}")
    return outcome


def _refused(error: RewardRejected) -> ItemError:
    passing = error.problem.status >= 500 or error.problem.status in _NOT_OF_THE_ITEMS
    return ItemError(ErrorCode.NO_REPLICA if passing else ErrorCode.SCORER_FAILED, str(error))
