"""Dockerfiles, compose files and Kubernetes manifests agree with each other and with the code; no engine is needed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import flow_grpo
from gateway.config import load_config
from gateway.metrics import GatewayMetrics
from reward_services.registry import load_scorer

ROOT = Path(flow_grpo.__file__).parents[1]
KUBERNETES = ROOT / "docker" / "kubernetes"
REWARDS = {"geneval": 8101, "ocr": 8102, "pickscore": 8103}


class _Compose(yaml.SafeLoader):
    """Reads `!reset` as what it is applied to."""


_Compose.add_constructor("!reset", lambda loader, node: loader.construct_sequence(node))


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    document = yaml.load((ROOT / name).read_text(), _Compose)
    return dict(document["services"])


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name != "prometheus-adapter.yaml":  # values of a chart
            yield from yaml.safe_load_all(path.read_text())


def workloads() -> dict[str, dict[str, Any]]:
    return {doc["metadata"]["name"]: doc for doc in manifests() if doc["kind"] in ("Deployment", "StatefulSet", "Job")}


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(workload, its labels, a container of it)."""
    for name, document in workloads().items():
        template = document["spec"]["template"]
        for container in template["spec"]["containers"]:
            yield name, template.get("metadata", {}).get("labels", {}), container


def options_of(command: list[str]) -> dict[str, str]:
    assert command[::2] == ["--option"] * (len(command) // 2)
    return dict(word.split("=", 1) for word in command[1::2])


def test_nothing_reaches_an_image_that_was_not_named():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert allowed == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "docker/ready.py", "recipes"),
        *("flow_grpo", "gateway", "reward_api", "reward_services", "tiny_world", "trainer"),
    }


@pytest.mark.parametrize("service", ["gateway", *REWARDS])
def test_a_port_is_the_same_in_image_health_check_and_compose(service: str):
    dockerfile = (ROOT / compose()[service]["build"]["dockerfile"]).read_text()
    (port,) = re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    assert f'CMD ["python", "/opt/ready.py", "{port}"]' in dockerfile
    assert f'"--port", "{port}"]' in dockerfile
    assert compose()[service]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_gateway_is_told_where_the_rewards_are():
    config = load_config(ROOT / "docker" / "config" / "gateway.yaml")
    assert {name: route.replicas for name, route in config.rewards.items()} == {
        name: [f"dns+http://{name}:{port}"] for name, port in REWARDS.items()
    }
    assert config.jobs is not None
    assert config.jobs.broker == "redis://redis:6379/0"
    assert config.jobs.folder.is_relative_to("/var/lib/flow-grpo")
    assert "jobs:/var/lib/flow-grpo" in compose()["gateway"]["volumes"]
    assert "jobs:/var/lib/flow-grpo" in compose()["jobs-worker"]["volumes"]


def test_the_example_of_an_env_file_shows_every_variable_with_its_default():
    shown = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    used: dict[str, str] = {}
    for path in sorted(ROOT.glob("docker-compose*.yml"), key=lambda path: len(path.name), reverse=True):
        used |= dict(re.findall(r"\$\{(\w+):?-([^}]*)\}", path.read_text()))
    assert shown == used


@pytest.mark.parametrize("preset", ["tiny", "full"])
def test_the_options_of_a_preset_are_the_rewards_own(preset: str):
    services = compose(f"docker/presets/{preset}.yml")
    assert set(services) == set(REWARDS)
    for name, service in services.items():
        assert "mem_limit" in service, name
        load_scorer(name, options_of(service.get("command", [])))


def test_the_manifests_fit_the_schemas_of_kubernetes():
    for document in manifests():
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_every_pod_is_confined_and_its_ports_and_probes_are_those_of_its_image():
    by_image = {service["image"]: service for service in compose().values()}
    for name, _, container in pods():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"], name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"]), name
        dockerfile = (ROOT / by_image[container["image"]]["build"]["dockerfile"]).read_text()
        exposed = [int(port) for port in re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)]
        assert [port["containerPort"] for port in container.get("ports", [])] == exposed, name
        for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
            asked = container.get(probe, {}).get("httpGet")
            assert asked is None or asked == {"path": path, "port": exposed[0]}, (name, probe)


def test_the_services_of_the_cluster_are_the_addresses_that_gateways_and_trainer_use():
    services = {
        document["metadata"]["name"]: document["spec"] for document in manifests() if document["kind"] == "Service"
    }
    for name, spec in services.items():
        chosen = [
            container
            for _, labels, container in pods()
            if spec["selector"].items() <= labels.items() and container.get("ports")
        ]
        assert [port["containerPort"] for one in chosen for port in one["ports"]] == [spec["ports"][0]["port"]], name
    for name in REWARDS:
        assert services[name]["clusterIP"] == "None", "a balanced address would hide the replicas"
    for document in manifests():
        if document["kind"] == "ConfigMap":
            settings = yaml.safe_load(document["data"]["gateway.yaml"])
            assert {name: route["replicas"] for name, route in settings["rewards"].items()} == {
                name: [f"dns+http://{name}:{port}"] for name, port in REWARDS.items()
            }
            assert settings.get("jobs", {}).get("gateway", "http://gateway:8100") == "http://gateway:8100"
    (trainer,) = (container for name, _, container in pods() if name == "train")
    assert {"name": "REWARD_URL", "value": "http://gateway:8100"} in trainer["env"]


def test_rewards_scale_by_a_metric_that_the_gateway_has():
    families = {family.name: family for family in GatewayMetrics().registry.collect()}
    scaled = [document["spec"] for document in manifests() if document["kind"] == "HorizontalPodAutoscaler"]
    assert {spec["scaleTargetRef"]["name"] for spec in scaled} == set(REWARDS)
    for spec in scaled:
        metric = spec["metrics"][0]["external"]["metric"]
        assert metric["name"] in families
        assert metric["selector"]["matchLabels"] == {"reward": spec["scaleTargetRef"]["name"]}
        assert spec["scaleTargetRef"]["name"] in workloads()
