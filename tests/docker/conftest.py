"""Images and stack are made once; without a Docker Engine all tests here are skipped with the reason."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_stack import BUILD_S, IMAGES, MMDET, PROJECT, SERVICES, START_S, compose, docker, lettered, no_engine
from PIL import Image, ImageDraw

_figures: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = no_engine() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.docker)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _figures:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """All images, built one after the other: service -> name."""
    for service in IMAGES:
        started = time.monotonic()
        if service == "geneval-mmdet":
            compose("build", "geneval", files=MMDET, timeout_s=BUILD_S)
        else:
            compose("--profile", "trainer", "build", service, timeout_s=BUILD_S)
        size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGES[service]))
        _figures.append(f"{service:14} {size / 1e6:6.0f} MB, built in {time.monotonic() - started:.0f} s")
    base = int(docker("image", "inspect", "--format", "{{.Size}}", "python:3.11-slim-bookworm"))
    _figures.append(f"{'of these':14} {base / 1e6:6.0f} MB are python:3.11-slim-bookworm")
    return IMAGES


@pytest.fixture(scope="session")
def stack(images: dict[str, str]) -> Iterator[None]:
    """`docker compose up --wait` from nothing."""
    compose("--profile", "trainer", "down", "--volumes", "--remove-orphans")
    since, started = str(time.time()), time.monotonic()
    compose("up", "--wait")
    _figures.append(f"up --wait took {time.monotonic() - started:.1f} s; from a container's start until it is healthy:")
    _figures.extend(f"{service:14} {seconds:6.1f} s" for service, seconds in _cold_starts(since).items())
    yield
    compose("--profile", "trainer", "down", "--volumes", "--remove-orphans", timeout_s=START_S)


def _cold_starts(since: str) -> dict[str, float]:
    """Seconds from start to health of each service, by the engine's own events."""
    said = docker(
        "events",
        *("--since", since, "--until", str(time.time()), "--filter", f"label=com.docker.compose.project={PROJECT}"),
        *("--format", '{{index .Actor.Attributes "com.docker.compose.service"}} {{.Action}} {{.TimeNano}}'),
    )
    starts: dict[str, int] = {}
    took: dict[str, float] = {}
    for line in said.splitlines():
        service, action, at = line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].rpartition(" ")[0], line.split()[-1]
        if action == "start":
            starts[service] = int(at)
        elif action == "health_status: healthy" and service not in took:
            took[service] = (int(at) - starts[service]) / 1e9
    return {service: took[service] for service in SERVICES}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with circles.png (a red circle left of a blue one) and fox.png (the word FOX)."""
    folder = tmp_path_factory.mktemp("pictures")
    circles = Image.new("RGB", (64, 64), (128, 128, 128))
    draw = ImageDraw.Draw(circles)
    draw.ellipse((6, 22, 25, 41), fill=(214, 40, 44))
    draw.ellipse((38, 22, 57, 41), fill=(44, 92, 210))
    circles.save(folder / "circles.png")
    Image.fromarray(lettered("FOX")).save(folder / "fox.png")
    return folder
