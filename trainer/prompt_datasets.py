"""Prompts of a Hugging Face dataset, on the hub or on this machine. Only this module imports ``datasets``."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.config import first_line
from trainer.prompt_records import PromptError, Record, read_object, read_record

_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
_READ = ("tag", "metadata", "include", "exclude")


def dataset_records(name: str, subset: str | None, split: str, column: str) -> Iterator[Record]:
    """The rows of one split, with ``column`` as prompt. ``name`` is a hub id, a folder or a file.

    ``metadata``, ``include`` and ``exclude`` may be JSON texts: Arrow has no type for GenEval's ``["left of", 0]``.
    Raises PromptError naming the dataset, and the row from 1 where it is one row's fault.
    """
    rows = _load(name, subset, split)
    if column not in rows.column_names:
        raise PromptError(f"{name}: has no column {column!r}; its columns are {', '.join(rows.column_names)}")
    wanted = [column, *(extra for extra in _READ if extra in rows.column_names and extra != column)]
    for number, row in enumerate(rows.select_columns(wanted), start=1):
        where = f"{name}, row {number}"
        fields = {key: _plain(row[key], f"{where}, {key}") for key in wanted[1:] if row[key] is not None}
        yield read_record(fields | {"prompt": row[column]}, where)


def _load(name: str, subset: str | None, split: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise PromptError(f"{name}: {error}; pip install 'flow-grpo[datasets]' brings it") from error
    path = Path(name)
    try:
        if path.is_file():
            if path.suffix not in _FORMATS:
                raise PromptError(f"{name}: a dataset's file ends in one of {', '.join(_FORMATS)}")
            return datasets.load_dataset(_FORMATS[path.suffix], data_files={split: str(path)}, split=split)
        if (path / "state.json").is_file():
            return datasets.load_from_disk(name)
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name)[split]
        return datasets.load_dataset(name, subset, split=split)
    except PromptError:
        raise
    except Exception as error:  # builders, Arrow and the hub raise many types
        hint = "" if path.exists() else "; it is no path here, and as a hub id it may need a network or `hf auth login`"
        raise PromptError(f"{name}: the split {split!r} cannot be loaded ({first_line(error)}){hint}") from error


def _plain(value: Any, where: str) -> Any:
    """JSON texts as what they say, and no members that Arrow filled in with nulls."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return read_object(value, where)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise PromptError(f"{where}: is not JSON: {error}") from error
    if isinstance(value, Mapping):
        return {key: _plain(member, where) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_plain(member, where) for member in value]
    return value
