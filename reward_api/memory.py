"""What a serving process does about memory once, before its first request.

The body of a request is a large piece of memory that lives for milliseconds. By default glibc returns it to the kernel,
which clears page after page for the next one: 69 page faults for an image of 256 x 256. And Python's collector, set off
by the objects that requests make, looks again and again at all that was imported: 29 ms each time in the gateway.
"""

import ctypes
import gc
import os

KEPT_BYTES = 64 * 2**20  # free memory at the end of the heap that is not given back
LARGEST_BYTES = 32 * 2**20  # the most that glibc takes from its heap; larger pieces are mapped and returned one by one
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def settle() -> None:
    """Keeps freed memory for the next request, and what has been imported out of the collector's way.

    Where the environment says how malloc shall behave, or malloc is not glibc's, it is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in _VARIABLES):
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGEST_BYTES)
    gc.collect()
    gc.freeze()
