"""The names operators build on: what is exposed, and what the dashboard asks for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateway.metrics import GatewayMetrics
from reward_services.metrics import ServiceMetrics
from reward_services.scoring import ScorerThread

pytestmark = pytest.mark.unit

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
COMMON = {
    "reward_requests_total": {"reward", "code"},
    "reward_items_total": {"reward", "outcome"},
    "reward_batch_seconds": {"replica"},
    "reward_inflight_batches": {"replica"},
    "reward_replica_up": {"replica"},
    "reward_retries_total": {"reason"},
}
GATEWAY = COMMON | {
    "reward_queue_depth_items": {"reward"},
    "reward_queue_bytes": {"reward"},
    "reward_queue_wait_seconds": {"reward"},
    "reward_batch_size": {"reward"},
    "reward_replica_ejections_total": {"replica"},
}
SERVICE = COMMON | {
    "reward_queue_depth_items": set(),
    "reward_queue_bytes": set(),
    "reward_queue_wait_seconds": set(),
    "reward_batch_size": set(),
}


def exposed(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Name as in SERVING, with _total where it is a counter -> labels; also those without a sample yet."""
    return {
        family.describe()[0].name + ("_total" if family.describe()[0].type == "counter" else ""): set(
            family._labelnames
        )
        for family in set(registry._collector_to_names)
    }


def test_the_gateway_exposes_every_name():
    found = exposed(GatewayMetrics().registry)
    assert {name: found.get(name) for name in GATEWAY} == GATEWAY


def test_a_service_exposes_every_name_that_makes_sense_there():
    found = exposed(ServiceMetrics().registry)
    assert {name: found.get(name) for name in SERVICE} == SERVICE


def test_a_service_is_its_own_replica():
    class Scorer:
        name, version = "fair", "1"

        def score(self, batch):
            if len(batch) > 1:
                raise RuntimeError("only one at a time")
            return [0.5]

    import numpy as np

    from reward_api import Item, Score

    metrics = ServiceMetrics()
    thread = ScorerThread(Scorer(), metrics)
    assert 'reward_replica_up{replica="self"} 0.0' in metrics.render().decode()
    tickets = thread.submit([Item(np.zeros((2, 2, 3), np.uint8), "a")] * 2, deterministic=False)
    thread.start()
    assert [ticket.result(timeout=30) for ticket in tickets] == [Score(0.5), Score(0.5)]
    text = metrics.render().decode()
    thread.stop()
    assert 'reward_replica_up{replica="self"} 1.0' in text
    assert 'reward_retries_total{reason="taken_apart"} 1.0' in text
    assert 'reward_replica_up{replica="self"} 0.0' in metrics.render().decode()


def expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def series_of(registry: CollectorRegistry) -> set[str]:
    """Every name a query may use: histograms also with _bucket, _sum and _count."""
    return {name for names in registry._collector_to_names.values() for name in names if not name.endswith("_created")}


def test_the_dashboard_asks_only_for_names_and_labels_that_are_there():
    asked = list(expressions(json.loads(DASHBOARD.read_text())))
    registry = GatewayMetrics().registry
    series, labels = series_of(registry), exposed(registry)
    used: set[str] = set()
    for expression in asked:
        for name, matchers in re.findall(r"\b(reward_[a-z_]+)\b(?:\{([^}]*)\})?", expression):
            used.add(name)
            assert name in series, expression
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            for label in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers):
                assert label == "job" or label in labels[family], expression
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert families == GATEWAY.keys()  # and it shows all of them


def test_the_dashboard_can_be_imported():
    dashboard = json.loads(DASHBOARD.read_text())
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
