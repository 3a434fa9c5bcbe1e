import pytest

from gateway.config import GatewayConfig, futile_settings, load_config

pytestmark = pytest.mark.unit


def test_a_file_of_three_lines_is_enough(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text("rewards:\n  geneval:\n    replicas: [http://127.0.0.1:9001/, 'http://127.0.0.1:9002']\n")
    config = load_config(path)
    route = config.rewards["geneval"]
    assert route.replicas == ["http://127.0.0.1:9001", "http://127.0.0.1:9002"]
    assert route.max_delay_ms == 0
    assert futile_settings(config) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rewards: {}", "rewards"),
        ("rewards: {ocr: {replicas: []}}", "rewards.ocr.replicas"),
        ("rewards: {ocr: {replicas: [localhost]}}", "'localhost'"),
        ("rewards: {ocr: {replicas: ['http://a', 'http://a/']}}", "listed twice"),
        ("rewards: {ocr: {replicas: ['http://a'], max_bach: 3}}", "rewards.ocr.max_bach"),
        ("rewards: [", "no YAML"),
    ],
)
def test_a_fault_names_file_and_place(tmp_path, text, fault):
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"gateway\.yaml") as caught:
        load_config(path)
    assert fault in str(caught.value)


def test_replicas_by_environment_alone_and_over_the_file(tmp_path):
    environment = {"REWARD_REPLICAS": "ocr=http://a:1,http://b:2 geneval=dns+http://geneval:8101"}
    alone = load_config(None, environment)
    assert {name: route.replicas for name, route in alone.rewards.items()} == {
        "ocr": ["http://a:1", "http://b:2"],
        "geneval": ["dns+http://geneval:8101"],
    }
    path = tmp_path / "gateway.yaml"
    path.write_text("rewards: {ocr: {replicas: ['http://c'], max_batch: 3}, style: {replicas: ['http://d']}}")
    both = load_config(path, environment).rewards
    assert (both["ocr"].replicas, both["ocr"].max_batch) == (["http://a:1", "http://b:2"], 3)
    assert both["style"].replicas == ["http://d"]
    assert both.keys() == {"ocr", "style", "geneval"}


@pytest.mark.parametrize("text", ["ocr", "=http://a", "ocr=", "ocr=localhost"])
def test_a_fault_in_the_environment_is_named(text):
    with pytest.raises(ValueError, match="REWARD_REPLICAS"):
        load_config(None, {"REWARD_REPLICAS": text})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.yaml cannot be read"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"queue_items": 4, "max_batch": 8}, "max_batch 8 can never fill"),
        ({"queue_bytes": 1000}, "exceeds queue_bytes 1000"),
        ({"max_batch": 1, "max_delay_ms": 5}, "only delays"),
        ({"max_delay_ms": 120_000}, "reaches the default deadline"),
    ],
)
def test_settings_that_cannot_work_are_warned_of(settings, words):
    config = GatewayConfig.model_validate({"rewards": {"ocr": {"replicas": ["http://a"], **settings}}})
    (warning,) = futile_settings(config)
    assert warning.startswith("ocr: ")
    assert words in warning
