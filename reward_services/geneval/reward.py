"""GenEval as a reward for RL: the mean of graded terms, with counts that must match exactly.

Terms of an ``include`` clause: 1 - |count - found| / count; then, if the number is right, 1 - |count - right colors| /
count where it asks for a color and, if all colors are right, 0 or 1 where it asks for a position; if the number is
wrong, one term 0 for color and position together. No term is below 0. An ``exclude`` clause adds a term of its own
unless an exact count already implies it, as in GenEval's counting prompts. The reward is 1 only where the official
verdict is "correct" too.

``compat="flow_grpo"`` repeats the reference reward server with its faults: terms are not clamped, a wrong position
appends 1 after its 0, ``exclude`` is ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward_services.geneval.detector import Detection
from reward_services.geneval.metadata import Metadata
from reward_services.geneval.verdict import ColorOf, kept, position_fault


@dataclass(frozen=True, slots=True)
class Term:
    """One graded question: the class it is about, what was asked of it, and the value (at most 1)."""

    label: str
    asked: str
    value: float


@dataclass(frozen=True, slots=True)
class Reward:
    """The mean of the terms."""

    score: float
    terms: tuple[Term, ...]


def reward(
    detections: Mapping[str, Sequence[Detection]], metadata: Metadata, color_of: ColorOf, compat: str | None = None
) -> Reward:
    """The reward of one picture: in [0, 1], or at most 1 and at least -14 with ``compat="flow_grpo"``."""
    faithful = compat == "flow_grpo"
    terms = _include_terms(kept(detections, metadata.tag), metadata, color_of, faithful)
    if not faithful:
        terms += _exclude_terms(kept(detections, metadata.tag), metadata)
    return Reward(sum(term.value for term in terms) / len(terms), tuple(terms))


def _include_terms(
    objects: Mapping[str, Sequence[Detection]], metadata: Metadata, color_of: ColorOf, faithful: bool
) -> list[Term]:
    terms: list[Term] = []
    matched: list[Sequence[Detection] | None] = []
    for clause in metadata.include:
        found = objects.get(clause.name, [])
        terms.append(Term(clause.name, "count", _closeness(clause.count, len(found), clamp=not faithful)))
        fine = len(found) == clause.count
        if not fine and (clause.color is not None or clause.position is not None):
            terms.append(Term(clause.name, "color or position", 0.0))
        if fine and clause.color is not None:
            right = sum(color_of(thing) == clause.color for thing in found)
            terms.append(Term(clause.name, "color", _closeness(clause.count, right, clamp=not faithful)))
            fine = right == clause.count
        if fine and clause.position is not None:
            target_found = matched[clause.position[1]] is not None
            fine = position_fault(clause, found, matched) is None
            terms.append(Term(clause.name, "position", float(fine)))
            if faithful and target_found and not fine:
                terms.append(Term(clause.name, "position", 1.0))
        matched.append(found if fine else None)
    return terms


def _exclude_terms(objects: Mapping[str, Sequence[Detection]], metadata: Metadata) -> list[Term]:
    terms: list[Term] = []
    for exclusion in metadata.exclude:
        if any(clause.name == exclusion.name and clause.count < exclusion.count for clause in metadata.include):
            continue
        excess = max(len(objects.get(exclusion.name, [])) - (exclusion.count - 1), 0)
        terms.append(Term(exclusion.name, "exclude", max(1 - excess / exclusion.count, 0.0)))
    return terms


def _closeness(count: int, found: int, clamp: bool) -> float:
    value = 1 - abs(count - found) / count
    return max(value, 0.0) if clamp else value
