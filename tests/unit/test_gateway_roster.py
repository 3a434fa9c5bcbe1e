"""Replicas that come and go: by DNS name, by an operator, by the configuration file."""

import asyncio
import os
import signal
from collections.abc import Callable

import httpx
import pytest
import yaml

from gateway.config import GatewayConfig, load_config
from gateway.reload import following, stamp_of
from gateway.roster import Roster, addresses_of
from gateway.scoring import Gateway

pytestmark = pytest.mark.unit

A, B = "http://10.0.0.1:81", "http://10.0.0.2:81"


async def ready(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"name": "ocr", "version": "1"})


def settings(*replicas: str, **more: object) -> GatewayConfig:
    return GatewayConfig.model_validate(
        {"rewards": {"ocr": {"replicas": list(replicas)}}, "probe_interval_s": 60} | more
    )


def urls(gateway: Gateway) -> list[str]:
    return [replica.url for replica in gateway.dispatchers["ocr"].replicas.listed if replica.up]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110 - the state is a plain value
            await asyncio.sleep(0.005)


async def test_a_name_stands_for_all_its_addresses_and_is_looked_up_again():
    behind: dict[str, list[str] | OSError] = {"ocr": ["10.0.0.1", "10.0.0.2"]}
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        found = behind[host]
        if isinstance(found, OSError):
            raise found
        return found

    config = settings("http://only:1", resolve_interval_s=0.01)
    async with Gateway(config, transport=httpx.MockTransport(ready)) as gateway:
        roster = Roster(gateway.dispatchers["ocr"], gateway.upstream, config, resolve)
        try:
            await roster.change(["dns+http://ocr:81", "http://[::1]:5"])
            assert urls(gateway) == [A, B, "http://[::1]:5"]
            behind["ocr"] = ["10.0.0.2", "fe80::1"]
            await until(lambda: urls(gateway) == [B, "http://[::1]:5", "http://[fe80::1]:81"])
            behind["ocr"] = OSError("no such name")
            asked.clear()
            await until(lambda: len(asked) > 2)
            assert len(urls(gateway)) == 3  # those known before stand
            assert set(asked) == {("ocr", 81)}
        finally:
            await roster.aclose()


async def test_loopback_has_a_name():
    assert "127.0.0.1" in await addresses_of("localhost", 80)


async def test_the_file_is_followed_and_a_broken_one_changes_nothing(tmp_path, caplog):
    path = tmp_path / "gateway.yaml"

    def write(*replicas: str, **route: object) -> None:
        document = {"rewards": {"ocr": {"replicas": list(replicas), **route}}, "reload_interval_s": 0.01}
        path.write_text(yaml.safe_dump(document | {"probe_interval_s": 60}))

    write(A)
    gateway = Gateway(load_config(path), transport=httpx.MockTransport(ready))
    async with gateway, following(path, gateway, stamp_of(path)):
        assert urls(gateway) == [A]
        write(A, B)
        await until(lambda: urls(gateway) == [A, B])
        path.write_text("rewards: {ocr: {replicas: []}}")
        await until(lambda: "stay as they are" in caplog.text)
        assert urls(gateway) == [A, B]
        write(B, max_batch=3)
        await until(lambda: urls(gateway) == [B])
        assert "restart the gateway" in caplog.text
        assert gateway.dispatchers["ocr"].route.max_batch == 16


async def test_a_hang_up_signal_reads_the_file_at_once(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(f"rewards: {{ocr: {{replicas: ['{A}']}}}}\nreload_interval_s: 60\nprobe_interval_s: 60\n")
    gateway = Gateway(load_config(path), transport=httpx.MockTransport(ready))
    async with gateway, following(path, gateway, stamp_of(path)):
        path.write_text(path.read_text().replace(A, B))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: urls(gateway) == [B])


async def test_a_replica_found_dead_is_probed_at_once():
    state = {"alive": True, "probes": 0}

    async def service(request: httpx.Request) -> httpx.Response:
        state["probes"] += request.url.path == "/readyz"
        if not state["alive"]:
            raise httpx.ConnectError("refused")
        return await ready(request)

    async with Gateway(settings(A), transport=httpx.MockTransport(service)) as gateway:
        dispatcher = gateway.dispatchers["ocr"]
        probes = state["probes"]
        dispatcher.on_down(dispatcher.replicas.replicas[0])
        await until(lambda: state["probes"] > probes)  # the next one by the clock is a minute away
