"""The OCR reward as pure functions of prompt and recognised text (Flow-GRPO's formula and a strict one)."""

import re
import unicodedata

_QUOTED = re.compile(r'"([^"]*)"')


def target_text(prompt: str) -> str | None:
    """What stands between the first pair of double quotes, or None if nothing does."""
    match = _QUOTED.search(prompt)
    if match is None or not normalise(match.group(1)):
        return None
    return match.group(1)


def normalise(text: str) -> str:
    """Lower case without white space: how target and reading are compared.

    First in Unicode's NFKC form, so that an accented letter is one letter however it was typed, and the full-width
    punctuation that recognition models trained on Chinese give for "!" or "?" is the plain one.
    """
    return "".join(unicodedata.normalize("NFKC", text).split()).lower()


def paper_reward(target: str, recognised: str) -> float:
    """1 if the target is contained in the reading, else 1 - min(distance, n) / n for n target characters.

    Text around the target costs nothing, so an image that repeats it is not punished; see `strict_reward`.
    """
    wanted, seen = normalise(target), normalise(recognised)
    if wanted in seen:
        return 1.0
    return 1.0 - min(edit_distance(wanted, seen), len(wanted)) / len(wanted)


def strict_reward(target: str, recognised: str) -> float:
    """1 - distance / length of the longer text: only the target and nothing else gives 1."""
    wanted, seen = normalise(target), normalise(recognised)
    return 1.0 - edit_distance(wanted, seen) / max(len(wanted), len(seen))


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions cost 1 each."""
    previous = list(range(len(second) + 1))
    for row, a in enumerate(first, start=1):
        current = [row]
        for column, b in enumerate(second, start=1):
            substituted = previous[column - 1] + (a != b)
            current.append(min(previous[column] + 1, current[-1] + 1, substituted))
        previous = current
    return previous[-1]
