import base64
import io
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image, ImageDraw

from trainer.before_after import PAIRS_PER_TASK
from trainer.charts import line_chart, round_ticks
from trainer.report import write_report

pytestmark = pytest.mark.unit

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
BEFORE = dict(zip(TASKS, (0.95, 0.5, 0.4, 0.7, 0.35, 0.3), strict=True))
AFTER = dict(zip(TASKS, (1.0, 0.95, 0.9, 0.95, 0.3, 0.9), strict=True))
IMAGES = 20
EPOCHS = 60


def picture(rng: random.Random, right: bool) -> Image.Image:
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    draw = ImageDraw.Draw(image)
    for _ in range(2 if right else 1):
        x, y = rng.randrange(4, 40), rng.randrange(4, 40)
        color = rng.choice(["red", "yellow", "green", "blue", "white"])
        draw.ellipse((x, y, x + 18, y + 18), fill=color)
    return image


def write_evaluation(folder: Path, label: str, rates: dict[str, float], seed: int, missing: int = 0) -> None:
    rng = random.Random(seed)
    (folder / label).mkdir(parents=True)
    items: list[dict[str, Any]] = []
    for task, rate in rates.items():
        for index in range(IMAGES):
            right = index < round(rate * IMAGES)
            name = f"{label}/{len(items):04d}.png"
            picture(rng, right).save(folder / name)
            score = None if len(items) < missing else float(right)
            items.append(
                {
                    "prompt": f"a photo of {task} {index % 7}",
                    "tag": task,
                    "image": name,
                    "scores": {"geneval": score},
                }
            )
    summary = {"score": sum(rates.values()) / len(rates), "tasks": rates, "images": len(items), "missing": missing}
    (folder / f"{label}.json").write_text(json.dumps({"rewards": {"geneval": summary}, "items": items}))


def metrics(epoch: int, kl: float = 0.0) -> dict[str, float]:
    rng = random.Random(epoch)
    return {
        "epoch": epoch,
        "reward/geneval": 0.9 - 0.4 * math.exp(-epoch / 20) + rng.uniform(-0.03, 0.03),
        "reward/geneval_std": 0.2,
        "reward/missing_fraction": 0.0,
        "reward/zero_variance_groups": 0.1 + epoch / 200,
        "policy/loss": 0.001,
        "policy/kl": kl,
        "policy/clip_fraction": 0.2 + rng.uniform(0, 0.2),
        "policy/abs_log_ratio": 1e-4,
        "policy/first_log_ratio": rng.choice([0.0, 3.1e-8]),
        "policy/gradient_norm": 0.02 + rng.uniform(0, 0.01),
        "time/rollout_s": 2.0,
        "time/reward_wait_exposed": rng.uniform(0, 0.4),
        "time/update_s": 3.0,
        "time/epoch_s": 5.2,
        "throughput/images_per_s": 40 + rng.uniform(-5, 5),
    }


def write_run(folder: Path) -> Path:
    """A folder as a finished run leaves it."""
    config = {
        "name": "tiny <geneval> & co",
        "epochs": EPOCHS,
        "model": {"path": "tiny_world:weights/small"},
        "rollout": {"groups": 16, "group_size": 12, "steps": 8, "step": "cps"},
        "evaluation": {"steps": 20},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(metrics(epoch)) + "\n" for epoch in range(1, EPOCHS + 1)))
    middle = {task: (BEFORE[task] + AFTER[task]) / 2 for task in TASKS}
    write_evaluation(folder / "evaluation", "before", BEFORE, 1)
    write_evaluation(folder / "evaluation", "epoch_000030", middle, 2)
    write_evaluation(folder / "evaluation", "after", AFTER, 3)
    (folder / "samples").mkdir()
    for epoch, color in ((10, "black"), (60, "white")):
        Image.new("RGB", (1078, 1014), color).save(folder / "samples" / f"epoch_{epoch:06d}.png")
    (folder / "summary.json").write_text(json.dumps({"recipe": "tiny", "epochs": EPOCHS, "seconds": 552.4}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


class Page(HTMLParser):
    """Text and tags of a page; checks that every element is closed."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.void:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_headline_and_table_give_before_after_and_difference(run: Path) -> None:
    text = page(run).text
    assert "held-out geneval 0.533 → 0.833" in text
    assert "epochs 60 of 60" in text
    assert "9 min 12 s" in text
    assert "counting 0.400 0.900 +0.500 20" in text
    assert "position 0.350 0.300 -0.050 20" in text
    assert "mean of tasks 0.533 0.833 +0.300 120" in text
    assert "missing" not in text.lower()


def test_the_last_sample_grid_is_shown(run: Path) -> None:
    (shown,) = [image for image in page(run).all("img") if image["class"] == "grid"]
    assert shown["alt"] == "epoch 60"
    data = base64.b64decode((shown["src"] or "").removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as grid:
        assert grid.getpixel((0, 0)) == (255, 255, 255)


def test_nothing_is_fetched_or_run(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    parsed = Page(html)
    assert not parsed.all("script")
    assert not parsed.all("link")
    assert "url(" not in html
    assert not re.search(r"(?:src|href)=\"(?!data:image/png;base64,)", html)
    assert str(run) not in html


def test_pictures_are_the_files_of_both_evaluations_in_pairs(run: Path) -> None:
    images = [image for image in page(run).all("img") if image["class"] == "crisp"]
    assert len(images) == 2 * PAIRS_PER_TASK * len(TASKS)
    for image, label in ((images[0], "before"), (images[1], "after")):
        assert image["alt"] == f"a photo of single_object 0, {label}"
        data = (image["src"] or "").removeprefix("data:image/png;base64,")
        with (
            Image.open(io.BytesIO(base64.b64decode(data))) as embedded,
            Image.open(run / "evaluation" / label / "0000.png") as saved,
        ):
            assert embedded.tobytes() == saved.tobytes()


def test_verdicts_stand_under_their_pictures(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    saved = json.loads((run / "evaluation" / "after.json").read_text())
    counting = [item for item in saved["items"] if item["tag"] == "counting"]
    chosen = [counting[index * IMAGES // PAIRS_PER_TASK] for index in range(PAIRS_PER_TASK)]
    section = html.split("<h3>counting</h3>")[1].split("<h3>")[0]
    verdicts = re.findall(r'"when">after</span> <span class="(good|bad)">', section)
    assert verdicts == ["good" if item["scores"]["geneval"] else "bad" for item in chosen]


def test_curves_are_well_formed_and_show_all_epochs_and_evaluations(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html)]
    titles = [chart.get("aria-label") for chart in charts]
    assert titles == [
        "Reward geneval",
        "Policy clip fraction",
        "First |log ratio|",
        "Gradient norm",
        "Exposed reward wait",
        "Throughput",
        "Groups without a signal",
    ]
    line = charts[0].find("polyline")
    assert line is not None
    assert len((line.get("points") or "").split()) == EPOCHS
    assert [title.text for title in charts[0].iter("title")] == [
        "epoch 0: 0.533",
        "epoch 30: 0.683",
        "epoch 60: 0.833",
    ]


def test_kl_is_drawn_once_it_is_not_zero(run: Path) -> None:
    assert "KL to the frozen model" not in page(run).text
    (run / "metrics.jsonl").write_text(json.dumps(metrics(1, kl=0.2)) + "\n")
    assert "KL to the frozen model" in page(run).text


def test_text_from_the_run_is_escaped(run: Path) -> None:
    path = run / "evaluation" / "after.json"
    for label in ("before", "after"):
        path = run / "evaluation" / f"{label}.json"
        path.write_text(path.read_text().replace("a photo of counting", "<script>alert('counting')</script> $x"))
    parsed = page(run)
    assert not parsed.all("script")
    assert "<script>alert('counting')</script> $x" in parsed.text
    assert "Flow-GRPO run: tiny <geneval> & co" in parsed.text


def test_a_run_that_stopped_early_says_what_is_missing(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "evaluation" / "after.json").write_text('{"rewards": {"geneval"')
    lines = (run / "metrics.jsonl").read_text().splitlines()[:7]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"epoch": 8, "rew')
    text = page(run).text
    assert "stopped before its end" in text
    assert "evaluation/after.json is not there or not complete" in text
    assert "Only the pictures before training are there" in text
    assert "epochs 7 of 60" in text
    assert "time in epochs 36.4 s" in text
    assert "held-out geneval 0.533 → missing" in text
    assert "counting 0.400 missing missing 20" in text


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    text = page(tmp_path).text
    for words in (
        "no summary.json",
        "evaluation before training is missing",
        "evaluation after training is missing",
        "no curves",
        "no pictures",
        "no sample grid",
        "config.yaml is missing",
    ):
        assert words in text


def test_a_missing_picture_and_missing_scores_are_named(run: Path) -> None:
    (run / "evaluation" / "before" / "0000.png").unlink()
    path = run / "evaluation" / "after.json"
    saved = json.loads(path.read_text())
    saved["items"][0]["scores"]["geneval"] = None
    saved["rewards"]["geneval"]["missing"] = 1
    path.write_text(json.dumps(saved))
    text = page(run).text
    assert "picture missing" in text
    assert "no score" in text
    assert "left out of the means: 1 of 120 scores after training" in text


def test_evaluations_of_other_prompts_are_not_paired(run: Path) -> None:
    path = run / "evaluation" / "before.json"
    path.write_text(path.read_text().replace("a photo of counting 0", "a photo of a circle"))
    parsed = page(run)
    assert "before training used other prompts" in parsed.text
    assert len([image for image in parsed.all("img") if image["class"] == "crisp"]) == PAIRS_PER_TASK * len(TASKS)


def test_scores_that_are_no_verdicts_are_printed_as_numbers(run: Path) -> None:
    for label in ("before", "after"):
        path = run / "evaluation" / f"{label}.json"
        saved = json.loads(path.read_text())
        saved["rewards"]["pickscore"] = {"score": 0.812, "tasks": {"counting": 0.812}, "images": 20, "missing": 0}
        for item in saved["items"]:
            if item["tag"] == "counting":
                item["scores"]["pickscore"] = 0.812
        path.write_text(json.dumps(saved))
    parsed = page(run)
    assert "pickscore 0.812" in parsed.text
    assert "geneval ✓ correct" in parsed.text
    assert "mean of tasks 0.812 0.812 +0.000 20" in parsed.text


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0, 60, (0, 20, 40, 60)),
        (-0.3, 0.9, (-0.5, 0, 0.5, 1)),
        (0, 3e-8, (0, 1e-8, 2e-8, 3e-8)),
    ],
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_a_chart_breaks_its_line_where_a_value_is_not_finite() -> None:
    nan = math.nan
    svg = line_chart([(1, 0.1), (2, 0.2), (3, nan), (4, 0.3), (5, math.inf), (6, 0.1), (7, 0.2)], label="x")
    assert svg.count("<polyline") == 2
    assert svg.count("line-dot") == 1
    assert "nan" not in svg
    assert "inf" not in svg
    assert line_chart([(1, nan)], label="x") == ""


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, 1e-9, 12345.6])
def test_a_chart_of_one_epoch_stays_inside_its_frame(value: float) -> None:
    root = ElementTree.fromstring(line_chart([(1, value)], [(1, value)], label="a & b"))
    dots = list(root.iter("circle"))
    assert len(dots) == 2
    for dot in dots:
        assert 0 <= float(dot.get("cx") or "nan") <= 360
        assert 0 <= float(dot.get("cy") or "nan") <= 190
