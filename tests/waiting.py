"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import Any

import pytest


def eventually(condition: Callable[[], Any], *, within_s: float, what: str, step_s: float = 0.05) -> Any:
    """What `condition`, asked every `step_s`, returns once it is true; after `within_s` the test fails."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s:g} s: {what}")
        time.sleep(step_s)
    return found
