"""The contract between trainer, gateway and reward services: items, outcomes, encodings, limits, client."""

from reward_api.client import RewardClient
from reward_api.contract import ErrorCode, Item, ItemError, Outcome, RewardInfo, Score, Scorer
from reward_api.limits import Limits
from reward_api.problems import EnvelopeError, Problem, RewardRejected, RewardUnavailable

__all__ = [
    "EnvelopeError",
    "ErrorCode",
    "Item",
    "ItemError",
    "Limits",
    "Outcome",
    "Problem",
    "RewardClient",
    "RewardInfo",
    "RewardRejected",
    "RewardUnavailable",
    "Score",
    "Scorer",
]
