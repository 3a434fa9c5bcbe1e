import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does, malloc is glibc's"),
]

PROGRAM = """
import gc, resource
from reward_api import memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        body = bytearray(8 * 2**20)
        copy = bytes(body)
        del body, copy
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
first = faults()
memory.settle()
faults()
print(first, faults(), gc.get_freeze_count())
"""


def run(**environment: str) -> list[int]:
    """Page faults of the same work before and after `settle`, and how many objects it froze."""
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return [int(word) for word in answer.stdout.split()]


def test_memory_of_a_request_is_kept_for_the_next():
    before, after, frozen = run()
    assert after < before / 20
    assert frozen > 1000


def test_the_environment_has_the_last_word():
    before, after, _ = run(MALLOC_MMAP_THRESHOLD_="65536")
    assert after > before / 2
