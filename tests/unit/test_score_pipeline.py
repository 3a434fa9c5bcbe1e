"""The pipeline of ``flow-grpo score`` against a server that answers with each picture's brightness."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from PIL import Image

from flow_grpo import score as command
from flow_grpo.ledger import Ledger
from flow_grpo.pipeline import Settings, score_archive
from reward_api import Item, ItemError, Limits, RewardClient, RewardInfo, RewardUnavailable, Score
from reward_api.wire import decode_request, encode_response
from trainer.prompt_records import PromptError

pytestmark = pytest.mark.unit

Answer = Callable[[str, Item], Score | ItemError]


def brightness(name: str, item: Item) -> Score | ItemError:
    return Score(float(item.image[0, 0, 0]), {"reward": name})


class Server:
    """Speaks the contract; remembers the sizes of its requests and the prompts it was asked about."""

    def __init__(self, *names: str, version: str = "1", answer: Answer = brightness, stop_after: int = 10**9) -> None:
        self.infos = [RewardInfo(name, version) for name in names]
        self.answer = answer
        self.stop_after = stop_after
        self.sizes: list[int] = []
        self.prompts: list[str] = []

    def client(self) -> RewardClient:
        return RewardClient("http://gateway", attempts=1, timeout_s=20, transport=httpx.MockTransport(self._handle))

    def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/rewards":
            return httpx.Response(200, content=msgspec.json.encode({"rewards": self.infos}))
        if len(self.sizes) >= self.stop_after:
            return httpx.Response(503)
        asked = decode_request(request.headers["content-type"], request.content, Limits())
        self.sizes.append(len(asked.items))
        outcomes = []
        for item, names in zip(asked.items, asked.rewards, strict=True):
            assert isinstance(item, Item)
            self.prompts.append(item.prompt)
            outcomes.append({name: self.answer(name, item) for name in names})
        body, kind = encode_response(outcomes, request.headers["accept"])
        return httpx.Response(200, content=body, headers={"content-type": kind})


def archive(folder: Path, count: int, **fields: Any) -> Path:
    """``count`` pictures, each as bright as its number."""
    lines = []
    for number in range(count):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "prompt": f"prompt {number}"} | fields)
    return rewrite(folder / "prompts.jsonl", lines)


def rewrite(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def listed(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def settings(*rewards: str, batch: int = 4, in_flight: int = 2) -> Settings:
    return Settings(rewards, batch, in_flight, deterministic=False)


async def run(source: Path, server: Server, out: Path, how: Settings | None = None) -> int:
    """Scores an archive; how many lines were set aside."""
    with Ledger(out) as ledger:
        await score_archive(source, server.client(), ledger, how or settings())
        return ledger.set_aside()


async def test_every_picture_gets_its_own_score_in_the_archives_order(tmp_path: Path):
    source, server, out = archive(tmp_path, 11), Server("light"), tmp_path / "out.jsonl"
    assert await run(source, server, out) == 0
    lines = listed(out)
    assert [(line["image"], line["prompt"], line["tag"]) for line in lines] == [
        (f"{number}.png", f"prompt {number}", "prompt") for number in range(11)
    ]
    assert [line["results"]["light"] for line in lines] == [
        {"score": float(number), "details": {"reward": "light"}} for number in range(11)
    ]
    assert server.sizes == [4, 4, 3]


async def test_a_second_run_asks_for_nothing_and_changes_nothing(tmp_path: Path):
    source, out = archive(tmp_path, 5), tmp_path / "out.jsonl"
    await run(source, Server("light"), out)
    before = out.read_bytes()
    again = Server("light")
    await run(source, again, out)
    assert again.sizes == []
    assert out.read_bytes() == before


async def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(tmp_path: Path):
    source, out, whole = archive(tmp_path, 23), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    await run(source, Server("light"), whole)
    with pytest.raises(RewardUnavailable):
        await run(source, Server("light", stop_after=3), out)
    assert 0 < len(out.read_bytes().splitlines()) < 23
    out.write_bytes(out.read_bytes()[:-7])
    rest = Server("light")
    await run(source, rest, out)
    assert out.read_bytes() == whole.read_bytes()
    assert 0 < sum(rest.sizes) < 23


async def test_done_is_told_by_content_and_not_by_place(tmp_path: Path):
    source, out = archive(tmp_path, 6), tmp_path / "out.jsonl"
    await run(source, Server("light"), out)
    lines = listed(source)
    Image.fromarray(np.full((4, 4, 3), 99, np.uint8)).save(tmp_path / "1.png")
    lines[2]["prompt"] = "another prompt"
    lines[3]["metadata"] = {"x": 1}
    server = Server("light")
    assert await run(rewrite(source, lines[::-1]), server, out) == 3
    assert sorted(server.prompts) == ["another prompt", "prompt 1", "prompt 3"]
    results = {line["image"]: line["results"]["light"]["score"] for line in listed(out)}
    assert results == {"0.png": 0.0, "1.png": 99.0, "2.png": 2.0, "3.png": 3.0, "4.png": 4.0, "5.png": 5.0}


async def test_another_version_of_a_reward_scores_anew(tmp_path: Path):
    source, out = archive(tmp_path, 3), tmp_path / "out.jsonl"
    await run(source, Server("light"), out)
    newer = Server("light", version="2")
    assert await run(source, newer, out) == 3
    assert sum(newer.sizes) == 3
    assert len(listed(tmp_path / "out.jsonl.stale")) == 3


async def test_each_line_may_ask_for_its_own_rewards(tmp_path: Path):
    source, out = archive(tmp_path, 3), tmp_path / "out.jsonl"
    lines = listed(source)
    lines[1]["rewards"] = ["b", "c"]
    await run(rewrite(source, lines), Server("a", "b", "c"), out, settings("a"))
    assert [sorted(line["results"]) for line in listed(out)] == [["a"], ["b", "c"], ["a"]]


async def test_what_cannot_be_read_or_sent_is_an_error_line_and_harms_no_other(tmp_path: Path):
    source, out = archive(tmp_path, 5), tmp_path / "out.jsonl"
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes(b"no picture")
    lines = listed(source)
    lines[3]["metadata"] = {"x": 2**70}
    lines[4]["prompt"] = "half a \ud83d"
    server = Server("light")
    await run(rewrite(source, lines), server, out)
    results = [line["results"]["light"] for line in listed(out)]
    assert results[0]["score"] == 0.0
    assert [result["error"]["code"] for result in results[1:]] == ["bad_image"] * 2 + ["bad_metadata"] * 2
    assert "1.png cannot be read (No such file" in results[1]["error"]["message"]
    assert server.prompts == ["prompt 0"]


async def test_failed_items_alone_are_tried_again(tmp_path: Path):
    def moody(name: str, item: Item) -> Score | ItemError:
        return ItemError("scorer_failed", "not today") if item.prompt == "prompt 1" else brightness(name, item)

    source, out = archive(tmp_path, 4), tmp_path / "out.jsonl"
    await run(source, Server("light", answer=moody), out)
    assert "error" in listed(out)[1]["results"]["light"]
    server = Server("light")
    await run(source, server, out)
    assert server.prompts == ["prompt 1"]
    assert {line["image"]: line["results"]["light"]["score"] for line in listed(out)} == {
        f"{number}.png": float(number) for number in range(4)
    }


async def test_a_reward_without_a_replica_ends_the_run_instead_of_filling_it_with_errors(tmp_path: Path):
    source, out = archive(tmp_path, 40), tmp_path / "out.jsonl"
    server = Server("light", answer=lambda name, item: ItemError("no_replica", "light has no replica that is up"))
    with pytest.raises(RewardUnavailable, match=r"scored none of 4 pictures: light has no replica"):
        await run(source, server, out)
    assert len(server.sizes) <= 2
    assert out.read_bytes() == b""


async def test_a_picture_that_takes_too_long_does_not_end_the_run(tmp_path: Path):
    def slow(name: str, item: Item) -> Score | ItemError:
        return ItemError("deadline", "too late") if item.prompt == "prompt 1" else brightness(name, item)

    source, out = archive(tmp_path, 4), tmp_path / "out.jsonl"
    for _ in range(2):  # the second time it is alone in its batch
        await run(source, Server("light", answer=slow), out)
        codes = {line["image"]: line["results"]["light"].get("error", {}).get("code") for line in listed(out)}
        assert codes == {"0.png": None, "1.png": "deadline", "2.png": None, "3.png": None}


async def test_an_item_that_comes_twice_is_written_once(tmp_path: Path):
    source, out = archive(tmp_path, 3), tmp_path / "out.jsonl"
    await run(rewrite(source, listed(source) * 2), Server("light"), out)
    assert [line["image"] for line in listed(out)] == ["0.png", "1.png", "2.png"]


async def test_no_more_requests_are_open_than_asked_for(tmp_path: Path):
    import asyncio

    open_now = most = 0

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal open_now, most
            scoring = request.url.path == "/v1/score"
            open_now += scoring
            most = max(most, open_now)
            await asyncio.sleep(0.01)
            open_now -= scoring
            await request.aread()
            return server._handle(request)

    source, server = archive(tmp_path, 30), Server("light")
    with Ledger(tmp_path / "out.jsonl") as ledger:
        client = RewardClient("http://gateway", transport=Slow())
        await score_archive(source, client, ledger, settings(batch=2, in_flight=3))
    assert most == 3
    assert len(server.sizes) == 15


@pytest.mark.parametrize(
    ("names", "version", "rewards", "error", "message"),
    [
        (("a", "b"), "1", (), PromptError, r"--reward NAME is needed for 0\.png; on offer are a, b"),
        (("a", "b"), "1", ("c",), PromptError, "http://gateway does not offer c; it offers a, b"),
        (("a", "b"), "", ("a",), RewardUnavailable, "no replica of a has been up yet"),
    ],
)
async def test_rewards_that_are_not_there_are_named_before_anything_is_scored(
    tmp_path: Path,
    names: tuple[str, ...],
    version: str,
    rewards: tuple[str, ...],
    error: type[Exception],
    message: str,
):
    source, server = archive(tmp_path, 3), Server(*names, version=version)
    with pytest.raises(error, match=message):
        await run(source, server, tmp_path / "out.jsonl", settings(*rewards))
    assert server.sizes == []


async def test_a_fault_in_the_last_line_shows_before_the_first_is_scored(tmp_path: Path):
    source, server = archive(tmp_path, 9), Server("light")
    with source.open("a") as lines:
        lines.write("{\n")
    with pytest.raises(PromptError, match="line 10"):
        await run(source, server, tmp_path / "out.jsonl")
    assert server.sizes == []


# The command


def test_the_command_prints_genevals_table_and_counts_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Two prompts of one task, one of another; the verdict counts, not the RL reward."""

    def verdict(name: str, item: Item) -> Score | ItemError:
        number = int(item.image[0, 0, 0])
        tag = "counting" if number < 4 else "colors"
        return Score(0.25, {"correct": number in (0, 5), "tag": tag})

    source = archive(tmp_path, 6)
    lines = listed(source)
    for number, line in enumerate(lines):
        line["prompt"] = f"prompt {number // 2}"
    (tmp_path / "3.png").write_bytes(b"")
    lines[3]["tag"] = "counting"
    rewrite(source, lines)
    server = Server("geneval", answer=verdict)
    monkeypatch.setattr(command, "RewardClient", lambda url, timeout_s: server.client())
    assert command.main([str(source), "--out", str(tmp_path / "out.jsonl")]) == 1
    said = capsys.readouterr()
    assert [line.split() for line in said.out.splitlines()] == [
        ["geneval", "score", "images", "prompts", "missing"],
        ["counting", "0.333", "4", "2", "1"],
        ["colors", "0.500", "2", "1", "0"],
        ["mean", "of", "tasks", "0.417", "6", "3", "1"],
    ]
    assert "5 of 6 pictures scored, 0 of them before this run" in said.err
    assert "1 with errors (geneval bad_image: 1)" in said.err
    Image.fromarray(np.full((4, 4, 3), 3, np.uint8)).save(tmp_path / "3.png")
    assert command.main([str(source), "--out", str(tmp_path / "out.jsonl")]) == 0
    assert "6 of 6 pictures scored, 5 of them before this run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        ("", "out.jsonl", ": holds no picture"),
        ('{"image": "x.png"}\n', "out.jsonl", 'prompts.jsonl, line 1: needs a non-empty "prompt"'),
        ('{"image": "x.png", "prompt": "x"}\n', "absent/out.jsonl", "absent/out.jsonl: No such file"),
    ],
)
def test_faults_are_one_line_and_status_1(
    tmp_path: Path, content: str, out: str, message: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "prompts.jsonl").write_text(content)
    assert command.main([str(tmp_path), "--out", str(tmp_path / out), "--url", "http://127.0.0.1:9"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_server_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    archive(tmp_path, 1)
    arguments = ["--out", str(tmp_path / "out.jsonl"), "--url", "http://127.0.0.1:9", "--timeout", "0.5"]
    assert command.main([str(tmp_path), *arguments]) == 1
    assert "http://127.0.0.1:9/v1/rewards failed" in capsys.readouterr().err
