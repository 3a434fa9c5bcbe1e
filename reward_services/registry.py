"""From a name on the command line to a scorer; only the named reward's libraries are imported."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_api import Scorer

BUILT_IN = {
    "geneval": "reward_services.geneval.scorer:GenEvalScorer",
    "ocr": "reward_services.ocr.scorer:OcrScorer",
    "pickscore": "reward_services.pickscore.scorer:PickScoreScorer",
    "clipscore": "reward_services.clipscore.scorer:ClipScoreScorer",
    "hpsv2": "reward_services.hpsv2.scorer:HpsV2Scorer",
    "aesthetic": "reward_services.aesthetic.scorer:AestheticScorer",
    "vlm_judge": "reward_services.vlm_judge.scorer:VlmJudgeScorer",
    "jpeg_compressibility": "reward_services.jpeg_compressibility.scorer:JpegCompressibilityScorer",
}


def load_scorer(name_or_path: str, options: Mapping[str, str]) -> Scorer:
    """Build a built-in reward or any "module:Class" (importable from the working directory too).

    Options are texts and are converted by the constructor's annotations. Raises ValueError naming what is wrong.
    """
    module_name, colon, class_name = BUILT_IN.get(name_or_path, name_or_path).partition(":")
    if not colon:
        raise ValueError(f"unknown reward {name_or_path!r}: choose {', '.join(BUILT_IN)} or MODULE:CLASS")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = f"; install flow-grpo[{name_or_path}]" if name_or_path in BUILT_IN else ""
        raise ValueError(f"reward {name_or_path!r} needs the module {error.name!r}{hint}") from error
    scorer_class = getattr(module, class_name, None)
    if scorer_class is None:
        raise ValueError(f"module {module_name!r} has no class {class_name!r}")
    arguments = _convert(name_or_path, scorer_class, options)
    scorer: Scorer = scorer_class(**arguments)
    missing = [member for member in ("name", "version", "score") if not hasattr(scorer, member)]
    if missing:
        raise ValueError(f"{name_or_path!r} is no scorer: it lacks {', '.join(missing)}")
    return scorer


def _convert(name: str, scorer_class: Any, options: Mapping[str, str]) -> dict[str, Any]:
    parameters = inspect.signature(scorer_class, eval_str=True).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise ValueError(
            f"reward {name!r} has no option {', '.join(unknown)}; it has: {', '.join(parameters) or 'none'}"
        )
    required = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    absent = sorted(key for key in required - set(options) if parameters[key].kind not in _VARIADIC)
    if absent:
        raise ValueError(f"reward {name!r} needs the option {', '.join(absent)}: --option {absent[0]}=...")
    return {key: _value(name, key, text, parameters[key].annotation) for key, text in options.items()}


_VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _value(name: str, key: str, text: str, annotation: Any) -> Any:
    try:
        if annotation is bool:
            return _TRUTH[text.lower()]
        if annotation in (int, float):
            return annotation(text)
    except (KeyError, ValueError):
        raise ValueError(f"option {key} of reward {name!r} must be {annotation.__name__}, got {text!r}") from None
    return text
