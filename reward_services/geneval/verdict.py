"""GenEval's official verdict (djghosh13/geneval) as a pure function over detections."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reward_services.geneval.detector import Detection
from reward_services.geneval.metadata import MOST_OBJECTS, Clause, Metadata

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
POSITION_SLACK = 0.1

ColorOf = Callable[[Detection], str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the picture satisfies the metadata; ``reason`` is empty where it does."""

    correct: bool
    reason: str


def threshold(tag: str) -> float:
    """Confidence a detection must exceed."""
    return COUNTING_THRESHOLD if tag == "counting" else THRESHOLD


def by_class(detections: Sequence[Detection]) -> dict[str, list[Detection]]:
    groups: dict[str, list[Detection]] = {}
    for detection in detections:
        groups.setdefault(detection.label, []).append(detection)
    return groups


def kept(detections: Mapping[str, Sequence[Detection]], tag: str) -> dict[str, list[Detection]]:
    """Of each class, the at most 16 most confident detections above the tag's threshold, best first. No NMS."""
    return {
        label: sorted((d for d in group if d.score > threshold(tag)), key=lambda d: -d.score)[:MOST_OBJECTS]
        for label, group in detections.items()
    }


def evaluate(detections: Mapping[str, Sequence[Detection]], metadata: Metadata, color_of: ColorOf) -> Verdict:
    """The official verdict. ``detections`` by class, of any confidence; ``color_of`` names an object's color.

    Of each ``include`` clause the first ``count`` objects are looked at, more do no harm; an ``exclude`` clause
    fails at ``count`` objects or more.
    """
    objects = kept(detections, metadata.tag)
    faults: list[str] = []
    matched: list[list[Detection] | None] = []
    for clause in metadata.include:
        found = objects.get(clause.name, [])[: clause.count]
        fault = _fault(clause, found, matched, color_of)
        matched.append(None if fault else found)
        if fault:
            faults.append(fault)
    for exclusion in metadata.exclude:
        number = len(objects.get(exclusion.name, []))
        if number >= exclusion.count:
            faults.append(f"expected fewer than {exclusion.count} {exclusion.name}, found {number}")
    return Verdict(not faults, "; ".join(faults))


def _fault(
    clause: Clause, found: list[Detection], matched: list[list[Detection] | None], color_of: ColorOf
) -> str | None:
    if len(found) < clause.count:
        return f"expected at least {clause.count} {clause.name}, found {len(found)}"
    if clause.color is not None:
        colors = [color_of(thing) for thing in found]
        if colors.count(clause.color) < clause.count:
            return f"expected {clause.count} {clause.color} {clause.name}, found {', '.join(colors)}"
    return position_fault(clause, found, matched)


def position_fault(
    clause: Clause, found: Sequence[Detection], matched: Sequence[Sequence[Detection] | None]
) -> str | None:
    """What is wrong with a clause's relation to its target; None if nothing is, or if it asks for none.

    ``matched`` holds the objects of the clauses before it, None where a clause failed.
    """
    if clause.position is None:
        return None
    relation, target = clause.position
    targets = matched[target]
    if targets is None:
        return f"no target for {clause.name} to be {relation}"
    for thing in found:
        for other in targets:
            relations = relative_position(thing.box, other.box)
            if relation not in relations:
                seen = " and ".join(sorted(relations)) or "in no relation to"
                return f"expected {clause.name} {relation} {other.label}, found it {seen} it"
    return None


def relative_position(
    box: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> frozenset[str]:
    """Relations of ``box`` to ``other``, both (x0, y0, x1, y1), y pointing down.

    A tenth of both sizes is taken off the offset of the centres on each axis; what remains must exceed half of
    the whole offset's length.
    """
    offset = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(box[i + 2] - box[i]) + abs(other[i + 2] - other[i]) for i in (0, 1)]
    beyond = [
        math.copysign(max(abs(gap) - POSITION_SLACK * size, 0.0), gap) for gap, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(part) < 1e-3 for part in beyond):
        return frozenset()
    dx, dy = (part / math.hypot(*offset) for part in beyond)
    relations = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return frozenset(name for name, holds in relations.items() if holds)
