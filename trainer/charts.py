"""Line charts as inline SVG; colors come from the page's style sheet."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 24

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A linear map of [low, high] to pixels, with the values to label."""

    low: float
    high: float
    first_pixel: float
    last_pixel: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.first_pixel + share * (self.last_pixel - self.first_pixel)


def round_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten that cover [low, high] with at most ``most`` + 2 values."""
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return tuple(step * index for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1))


def line_chart(line: Points, marks: Points = (), *, label: str) -> str:
    """An SVG of ``line`` over whole epochs, and of ``marks`` as separate dots. Values that are not finite leave a gap.

    The vertical axis begins at 0 unless there are negative values. Returns "" if there is nothing to draw.
    """
    shown = [point for point in (*line, *marks) if math.isfinite(point[1])]
    if not shown:
        return ""
    x_axis = _epochs([x for x, _ in shown])
    y_axis = _values([y for _, y in shown])
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">',
        *(_rule(y_axis(tick), tick) for tick in y_axis.ticks),
        *(
            f'<text class="tick" x="{x_axis(tick):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{_number(tick)}</text>'
            for tick in x_axis.ticks
        ),
    ]
    for run in _unbroken(line):
        if len(run) == 1:
            parts.append(f'<circle class="line-dot" cx="{x_axis(run[0][0]):.1f}" cy="{y_axis(run[0][1]):.1f}" r="2"/>')
        else:
            corners = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in run)
            parts.append(f'<polyline class="line" points="{corners}"/>')
    parts.extend(
        f'<circle class="mark" cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="4">'
        f"<title>epoch {x:g}: {y:.3f}</title></circle>"
        for x, y in marks
        if math.isfinite(y)
    )
    parts.append("</svg>")
    return "".join(parts)


def _epochs(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    ticks = tuple(tick for tick in round_ticks(low, high) if low <= tick <= high and tick == round(tick))
    return Axis(low, high, _LEFT, _WIDTH - _RIGHT, ticks)


def _values(values: Sequence[float]) -> Axis:
    low, high = min(0.0, *values), max(0.0, *values)
    if low == high:
        high = 1.0
    ticks = round_ticks(low, high)
    return Axis(ticks[0], ticks[-1], _HEIGHT - _BOTTOM, _TOP, ticks)


def _rule(y: float, value: float) -> str:
    return (
        f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_number(value)}</text>'
    )


def _number(value: float) -> str:
    return f"{value:.3g}"


def _unbroken(line: Points) -> Iterator[list[tuple[float, float]]]:
    """The stretches of ``line`` between values that are not finite."""
    run: list[tuple[float, float]] = []
    for x, y in line:
        if math.isfinite(y):
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run
