"""`python -m benchmarks.gateway`: measures all systems in interleaved rounds, prints the tables and writes them."""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.gateway import figures
from benchmarks.gateway.figures import Round
from benchmarks.gateway.systems import SYSTEMS, Cost, System
from benchmarks.stopping import leave_on_sigterm

RESULTS = Path(__file__).parents[1] / "results"
Measure = Callable[[System], Awaitable[Round]]
Medians = dict[str, dict[str, list[float]]]


def main() -> int:
    """Returns 0, or 1 if a system could not be measured. A wrong score of any system ends the run."""
    leave_on_sigterm()
    options = _options()
    lengths = {"seconds": 2.0, "count": 30, "chunks": 6} if options.quick else {"seconds": 8.0, "count": 200}
    rounds = options.rounds or (1 if options.quick else 5)
    chosen = [system for system in SYSTEMS if not options.systems or system.name in options.systems]
    seconds, count = float(lengths["seconds"]), int(lengths["count"])
    chunks = int(lengths.get("chunks", figures.CHUNKS))
    plans: dict[str, tuple[Mapping[str, Cost], Measure]] = {
        "B1": (figures.B1_REWARDS, partial(figures.throughput, seconds=seconds)),
        "B2": (figures.B1_REWARDS, partial(figures.latency, count=count)),
        "B4": (figures.B4_REWARDS, partial(figures.exposed_wait, chunks=chunks)),
        "B6": (figures.B6_REWARDS, partial(figures.goodput, seconds=seconds)),
        "B6 Retry-After": (figures.B6_REWARDS, figures.retry_after_off),
    }
    wanted = {name: plan for name, plan in plans.items() if not options.only or name.split()[0] in options.only}
    report = [_setting(options, rounds)]
    measured: dict[str, Medians] = {}
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
        for rewards in (figures.B1_REWARDS, figures.B4_REWARDS, figures.B6_REWARDS):
            names = [name for name, (needed, _) in wanted.items() if needed is rewards]
            if names:
                measured |= _interleaved(chosen, rewards, {n: wanted[n][1] for n in names}, rounds, options, folder)
    for name, by_system in measured.items():
        report.append(_table(name, by_system))
    text = "\n\n".join(report) + "\n"
    print(text)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M")
        (RESULTS / f"gateway-{stamp}.md").write_text(text, encoding="utf-8")
        (RESULTS / f"gateway-{stamp}.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print(f"written to {RESULTS}/gateway-{stamp}.md and .json")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--peers-python", type=Path, default=Path("benchmarks/.venv/bin/python"))
    parser.add_argument("--quick", action="store_true", help="one short round: shows that all works, measures nothing")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (default 5)")
    parser.add_argument("--only", nargs="+", choices=["B1", "B2", "B4", "B6"])
    parser.add_argument("--systems", nargs="+", choices=[system.name for system in SYSTEMS])
    options = parser.parse_args()
    options.peers_python = options.peers_python.absolute()  # not resolved: a link would lead out of the environment
    return options


def _interleaved(
    chosen: list[type[System]],
    rewards: Mapping[str, Cost],
    measures: Mapping[str, Measure],
    rounds: int,
    options: argparse.Namespace,
    folder: str,
) -> dict[str, Medians]:
    """All systems run side by side; in every round each is measured once, in an order that moves on by one."""
    found: dict[str, Medians] = {name: {s.name: defaultdict(list) for s in chosen} for name in measures}
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    with ExitStack() as stack:
        running = []
        for kind in chosen:
            _say(f"starting {kind.name} with {', '.join(rewards)}")
            place = Path(tempfile.mkdtemp(dir=folder))
            running.append(stack.enter_context(kind(rewards, place, options.peers_python)))
        for number in range(rounds):
            order = running[number % len(running) :] + running[: number % len(running)]
            for name, measure in measures.items():
                for system in order:
                    outcome = asyncio.run(_measured(measure, system))
                    ends[system.name] += outcome.ledger.ends
                    for figure, value in outcome.figures.items():
                        found[name][system.name][figure].append(value)
                    shown = ", ".join(f"{figure} {value:.3g}" for figure, value in outcome.figures.items())
                    _say(f"round {number + 1}/{rounds} {name:<15}{system.name:<12}{shown}  {dict(outcome.ledger.ends)}")
    return found


async def _measured(measure: Measure, system: System) -> Round:
    return await measure(system)


def _setting(options: argparse.Namespace, rounds: int) -> str:
    ours = f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"
    packages = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "fastapi", "httpx"))
    command = "python -m benchmarks.gateway " + " ".join(sys.argv[1:])
    return (
        f"# Gateway benchmark\n\n`{command}`\n\n{ours}; {packages}; medians of {rounds} interleaved rounds, "
        "every score checked against its image."
    )


def _table(name: str, by_system: Medians) -> str:
    """Rows of medians, with the lowest and highest round, beside their ratio to this repository's."""
    lines = [f"## {name}", ""]
    names = list(dict.fromkeys(figure for figures_ in by_system.values() for figure in figures_))
    if name == "B1":
        lines += [f"The scorer's own bound: {figures.B1_REWARDS['fake'].capacity():.0f} images/s.", ""]
    lines.append("| system | " + " | ".join(names) + " |")
    lines.append("|---|" + "---|" * len(names))
    for system, values in by_system.items():
        cells = [_cell(values.get(figure, [])) for figure in names]
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    goal = _against_peers(name, by_system)
    return "\n".join([*lines, *(["", goal] if goal else [])])


def _cell(values: list[float]) -> str:
    if not values:
        return "none"
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def _against_peers(name: str, by_system: Medians) -> str:
    """The sentence that compares with the best peer."""
    figure, best = {
        "B1": ("images_per_s", max),
        "B2": ("added_ms", min),
        "B4": ("exposed_s", min),
        "B6": ("goodput", max),
    }.get(name, ("", max))
    known = {system: statistics.median(values[figure]) for system, values in by_system.items() if values.get(figure)}
    ours = known.pop("flow-grpo", None)
    if ours is None or not known:
        return ""
    peer = best(known, key=lambda system: known[system])
    return f"flow-grpo has {ours / known[peer]:.2f} times the {figure} of the best peer, {peer}."


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
