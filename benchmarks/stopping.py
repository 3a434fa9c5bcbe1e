"""How a benchmark ends that is told to: with everything it has started."""

import signal
import sys


def leave_on_sigterm() -> None:
    """SIGTERM leaves by way of the `with` blocks, which end the processes they have begun."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
