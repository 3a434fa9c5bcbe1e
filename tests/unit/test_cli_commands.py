import sys
from types import ModuleType

import pytest

from flow_grpo.cli import main
from reward_api.listening import check_exposure

pytestmark = pytest.mark.unit


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4] != " "}
    assert {"serve", "train", "evaluate", "convert-detector", "score", "prompts", "demo"} <= listed


def test_help_of_serve_says_what_can_be_served(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    assert all(
        word in text for word in ("geneval", "gateway", "MODULE:CLASS", "--ready-file", "--workers", "KEY=VALUE")
    )


@pytest.mark.parametrize(
    "arguments", [[], ["serve"], ["fly"], ["serve", "ocr", "--option", "strict"], ["serve", "ocr", "--workers", "0"]]
)
def test_wrong_usage_is_status_2(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "gateway"], "--config FILE"),
        (["serve", "gateway", "--config", "x.yaml", "--option", "a=b"], "no --option"),
        (["serve", "gateway", "--config", "x.yaml", "--workers", "2"], "no --workers"),
        (["serve", "ocr", "--config", "x.yaml"], "belongs to serve gateway"),
    ],
)
def test_options_that_do_not_fit_are_explained(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_faults_are_one_line_and_status_1(tmp_path, capsys):
    assert main(["serve", "gateway", "--config", str(tmp_path / "absent.yaml")]) == 1
    assert main(["serve", "beauty"]) == 1
    assert main(["serve", "no_such_module:Scorer"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "absent.yaml" in lines[0]
    assert "unknown reward 'beauty'" in lines[1]
    assert "no_such_module" in lines[2]


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("train", "trainer.train"),
        ("evaluate", "trainer.evaluate"),
        ("score", "flow_grpo.score"),
        ("prompts", "trainer.make_prompts"),
        ("demo", "flow_grpo.demo"),
    ],
)
def test_other_commands_get_their_arguments_untouched(command, module, monkeypatch):
    received: list[list[str]] = []
    fake = ModuleType(module)
    fake.main = lambda argv: received.append(list(argv)) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, fake)
    assert main([command, "recipe.yaml", "--epochs=3", "--help"]) == 7
    assert received == [["recipe.yaml", "--epochs=3", "--help"]]


def test_a_missing_part_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trainer.train", None)
    assert main(["train", "recipe.yaml"]) == 1
    assert "flow-grpo[trainer]" in capsys.readouterr().err


@pytest.mark.parametrize(("trust", "allowed"), [("1", True), ("0", False), (None, False)])
def test_a_network_is_served_without_a_token_only_where_it_is_trusted(monkeypatch, trust, allowed):
    monkeypatch.delenv("REWARD_TRUST_NETWORK", raising=False)
    if trust is not None:
        monkeypatch.setenv("REWARD_TRUST_NETWORK", trust)
    check_exposure("127.0.0.1", None)
    check_exposure("0.0.0.0", "a token")
    if allowed:
        check_exposure("0.0.0.0", None)
    else:
        with pytest.raises(ValueError, match=r"refusing to serve 0\.0\.0\.0 without a token: set REWARD_TOKEN"):
            check_exposure("0.0.0.0", None)
