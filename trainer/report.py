"""``report.html``: one self-contained page about a run, made from the files in its folder."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml
from PIL import Image

from trainer.before_after import data_uri, gallery
from trainer.charts import line_chart
from trainer.paired import PairedDifference, paired_diversity, paired_rewards
from trainer.tracking import read_metrics, reward_names

_MISSING = "missing"


@dataclass(frozen=True)
class Recorded:
    """What a run's folder holds; None or empty where a file is missing or unreadable."""

    folder: Path
    settings: str | None
    config: dict[str, Any]
    metrics: list[dict[str, float]]
    evaluations: dict[str, dict[str, Any]]
    """By label, in the order of the run: before, epoch_000123, after."""
    summary: dict[str, Any] | None

    @property
    def epochs_done(self) -> int:
        return int(self.metrics[-1]["epoch"]) if self.metrics else 0


def write_report(folder: Path) -> Path:
    """Writes ``folder/report.html`` and returns its path. Whatever the folder lacks, the page says it lacks."""
    run = _read(folder)
    page = Template(files("trainer").joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Flow-GRPO run: {run.config.get('name', folder.name)}"),
        headline=_headline(run),
        tables=_tables(run),
        curves=_curves(run),
        pictures=_pictures(run),
        samples=_samples(run),
        settings=_settings(run),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _read(folder: Path) -> Recorded:
    settings_path = folder / "config.yaml"
    settings = settings_path.read_text(encoding="utf-8") if settings_path.exists() else None
    config = yaml.safe_load(settings) if settings else None
    evaluations = {}
    between = sorted(path.stem for path in (folder / "evaluation").glob("epoch_*.json"))
    for label in ("before", *between, "after"):
        evaluation = _read_json(folder / "evaluation" / f"{label}.json")
        if evaluation is not None:
            evaluations[label] = evaluation
    return Recorded(
        folder,
        settings,
        config if isinstance(config, dict) else {},
        read_metrics(folder),
        evaluations,
        _read_json(folder / "summary.json"),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    """The file's object; None if there is no file or its writing was cut short."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _missing(sentence: str) -> str:
    return f'<p class="missing">{escape(sentence)}</p>'


def _headline(run: Recorded) -> str:
    figures = []
    before, after = run.evaluations.get("before"), run.evaluations.get("after")
    for name in (after or before or {"rewards": {}})["rewards"]:
        old, new = (_score(evaluation, name) for evaluation in (before, after))
        figures.append((f"held-out {name}", f"{_decimal(old)} → {_decimal(new)}"))
    planned = run.config.get("epochs")
    figures.append(("epochs", f"{run.epochs_done} of {planned}" if planned else str(run.epochs_done)))
    if run.summary is not None and "seconds" in run.summary:
        figures.append(("time, evaluations included", _duration(run.summary["seconds"])))
    elif run.metrics:
        spent = sum(entry.get("time/epoch_s", 0.0) for entry in run.metrics)
        figures.append(("time in epochs", _duration(spent)))
    parts = [_description(run.config)]
    parts.append('<dl class="figures">')
    parts.extend(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in figures)
    parts.append("</dl>")
    if run.summary is None:
        parts.append(_missing("This run has no summary.json: it is still going on, or stopped before its end."))
    return "\n".join(parts)


def _description(config: dict[str, Any]) -> str:
    """One sentence on what was trained, as far as the settings tell."""
    try:
        rollout = config["rollout"]
        words = (
            f"{config['model']['path']}: {rollout['groups']} prompts an epoch with {rollout['group_size']} images "
            f"each, {rollout['steps']} {rollout['step']} steps in training, "
            f"{config['evaluation']['steps']} ODE steps in evaluation."
        )
    except KeyError:
        return ""
    return f'<p class="quiet">{escape(words)}</p>'


def _tables(run: Recorded) -> str:
    before, after = run.evaluations.get("before"), run.evaluations.get("after")
    parts = [
        _missing(f"The evaluation {when} training is missing: evaluation/{when}.json is not there or not complete.")
        for when, evaluation in (("before", before), ("after", after))
        if evaluation is None
    ]
    latest = after or before
    if latest is None:
        return "\n".join(parts)
    differences = paired_rewards(before, after) if before and after else {}
    parts.extend(_table(name, before, after, differences.get(name)) for name in latest["rewards"])
    if before and after and (spread := paired_diversity(before, after)):
        parts.append("<h3>diversity</h3>" + _difference(spread, "prompts, mean cosine distance of their images"))
    return "\n".join(parts)


def _table(
    name: str, before: dict[str, Any] | None, after: dict[str, Any] | None, difference: PairedDifference | None
) -> str:
    """One reward's tasks; the foot is the mean of the tasks, below it the paired difference of all images."""
    latest = after or before or {}
    reward = latest["rewards"][name]
    rows = [
        (task, _score(before, name, task), _score(after, name, task), _asked(latest, name, task))
        for task in reward["tasks"]
    ]
    body = "".join(_row(*row) for row in rows)
    foot = _row("mean of tasks", _score(before, name), _score(after, name), reward["images"])
    lost = [
        f"{evaluation['rewards'][name]['missing']} of {evaluation['rewards'][name]['images']} scores {when} training"
        for when, evaluation in (("before", before), ("after", after))
        if evaluation and name in evaluation["rewards"] and evaluation["rewards"][name]["missing"]
    ]
    note = _missing(f"Missing and left out of the means: {' and '.join(lost)}.") if lost else ""
    if difference is not None:
        note += _difference(difference, "images")
    return (
        f'<h3>{escape(name)}</h3><div class="wide"><table><thead><tr><th>task</th><th>before</th><th>after</th>'
        f"<th>difference</th><th>images</th></tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>{note}"
    )


def _difference(found: PairedDifference, what: str) -> str:
    words = (
        f"Paired difference of {found.pairs} {what}: {found.mean:+.3f}, 95 % interval {found.low:+.3f} to "
        f"{found.high:+.3f}; the standard deviation before is {found.deviation:.3f}."
    )
    return f'<p class="quiet">{escape(words)}</p>'


def _row(task: str, old: float | None, new: float | None, images: int) -> str:
    if old is None or new is None:
        difference = f"<td>{_MISSING}</td>"
    else:
        tone = "good" if new > old else "bad" if new < old else ""
        difference = f'<td class="{tone}">{new - old:+.3f}</td>'
    cells = f"<td>{_decimal(old)}</td><td>{_decimal(new)}</td>{difference}<td>{images}</td>"
    return f"<tr><td>{escape(task)}</td>{cells}</tr>"


def _score(evaluation: dict[str, Any] | None, name: str, task: str | None = None) -> float | None:
    """A reward's mean over tasks, or one task's mean; None where the evaluation has no such number."""
    reward = evaluation["rewards"].get(name) if evaluation else None
    if reward is None:
        return None
    value: float | None = reward["score"] if task is None else reward["tasks"].get(task)
    return value


def _asked(evaluation: dict[str, Any], name: str, task: str) -> int:
    return sum(item["tag"] == task and name in item["scores"] for item in evaluation["items"])


@dataclass(frozen=True)
class Curve:
    metric: str
    title: str
    meaning: str
    wanted: Callable[[Sequence[float]], bool] = any
    """Whether these values, all finite, are worth a chart; by default if any differs from 0."""


def _always(values: Sequence[float]) -> bool:
    return True


CURVES = (
    Curve("policy/clip_fraction", "Policy clip fraction", "share of terms whose ratio left the clip range", _always),
    Curve("policy/first_log_ratio", "First |log ratio|", "largest before the epoch's first update; ideally 0", _always),
    Curve("policy/kl", "KL to the frozen model", "mean over trained steps"),
    Curve("policy/gradient_norm", "Gradient norm", "before clipping, mean over the epoch's updates", _always),
    Curve("time/reward_wait_exposed", "Exposed reward wait", "seconds an epoch in which training stood still", _always),
    Curve("throughput/images_per_s", "Throughput", "images a second, whole epoch", _always),
    Curve("reward/zero_variance_groups", "Groups without a signal", "share whose images all scored the same"),
    Curve("reward/missing_fraction", "Missing scores", "share of the scores asked for"),
)


def _curves(run: Recorded) -> str:
    if not run.metrics:
        return _missing("There are no curves: metrics.jsonl is missing or holds no finished epoch.")
    figures = [_reward_curve(run, name) for name in reward_names(run.metrics)]
    for curve in CURVES:
        line = _line(run.metrics, curve.metric)
        finite = [value for _, value in line if math.isfinite(value)]
        if finite and curve.wanted(finite):
            figures.append(_figure(curve.title, escape(curve.meaning), line_chart(line, label=curve.title)))
        elif line and not finite:
            figures.append(_figure(curve.title, "no finite value was logged", ""))
    return f'<p class="quiet">Horizontal: epochs.</p><div class="charts">{"".join(figures)}</div>'


def _reward_curve(run: Recorded, name: str) -> str:
    marks = [
        (_epoch_of(label, run.epochs_done), value)
        for label, evaluation in run.evaluations.items()
        if (value := _score(evaluation, name)) is not None
    ]
    meaning = '<b class="key-line">line</b>: training images, mean'
    if marks:
        meaning += '; <b class="key-mark">dots</b>: held-out'
    chart = line_chart(_line(run.metrics, f"reward/{name}"), marks, label=f"Reward {name}")
    return _figure(f"Reward: {name}", meaning, chart)


def _epoch_of(label: str, last: int) -> int:
    """How many epochs were done when an evaluation was made."""
    if label == "before":
        return 0
    return last if label == "after" else int(label.removeprefix("epoch_"))


def _line(metrics: Sequence[dict[str, float]], metric: str) -> list[tuple[float, float]]:
    return [(entry["epoch"], entry[metric]) for entry in metrics if metric in entry]


def _figure(title: str, meaning: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(title)}<span>{meaning}</span></figcaption>{chart}</figure>"


def _pictures(run: Recorded) -> str:
    before, after = (run.evaluations.get(label, {}).get("items", []) for label in ("before", "after"))
    notes = []
    if not before and not after:
        return _missing("There are no pictures: the run has no held-out evaluation.")
    if not (before and after):
        notes.append(_missing(f"Only the pictures {'after' if after else 'before'} training are there."))
    elif [item["prompt"] for item in before] != [item["prompt"] for item in after]:
        notes.append(
            _missing("The evaluation before training used other prompts: only the pictures after it are shown.")
        )
        before = []
    notes.append('<p class="quiet">Spread evenly over each task\'s images, not picked.</p>')
    return "\n".join([*notes, gallery(run.folder / "evaluation", before, after)])


def _samples(run: Recorded) -> str:
    grids = sorted((run.folder / "samples").glob("epoch_*.png"))
    if not grids:
        return _missing("There is no sample grid: the folder samples is empty or missing.")
    try:
        with Image.open(grids[-1]) as opened:
            source = data_uri(opened.convert("RGB"))
    except OSError:
        return _missing(f"The sample grid {grids[-1].name} cannot be read.")
    name = f"epoch {int(grids[-1].stem.removeprefix('epoch_'))}"
    sheet = f'<div class="wide"><img class="grid" src="{source}" alt="{name}"></div>'
    return f'<p class="quiet">{name}, drawn with exploration noise</p>{sheet}'


def _settings(run: Recorded) -> str:
    if run.settings is None:
        return _missing("config.yaml is missing.")
    return f"<details><summary>config.yaml</summary><pre>{escape(run.settings)}</pre></details>"


def _decimal(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
