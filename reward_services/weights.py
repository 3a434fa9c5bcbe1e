"""Weights from this machine or the Hugging Face hub; every fault in one sentence that says what to do."""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class WeightsError(ValueError):
    """Weights that are not there, may not be read, or are not what they should be."""


def fetch(source: str, name: str) -> Path | None:
    """The file `name` of a directory, or of a hub repository through the hub's cache; None where it has none.

    Raises WeightsError: no such directory, repository unknown or gated, hub out of reach.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    if Path(source).is_file():
        raise WeightsError(f"{source} is a file: give the directory that holds it")
    if not _HUB_ID.fullmatch(source):
        raise WeightsError(
            f"there is no directory {source}: name one that is there, or a hub id (ORGANISATION/REPOSITORY)"
        )
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(source, name))
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{source}"
        raise WeightsError(
            f"{source} is gated: accept its terms at {page} and set HF_TOKEN to a token of that account"
        ) from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"{source} is neither a directory here nor a repository of the hub (a private one needs HF_TOKEN)"
        ) from None
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise WeightsError(
            f"{source} is neither a directory here nor, with {name}, in the hub's cache, and {why}: "
            "download it where there is a network and give its directory"
        ) from None
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise WeightsError(f"the hub refused {name} of {source}: {first_line(error)}") from None


def fetch_file(place: str) -> Path:
    """A file by its path, or ORGANISATION/REPOSITORY/FILE of the hub. Raises WeightsError."""
    if Path(place).is_file():
        return Path(place)
    repository, _, name = place.rpartition("/")
    if not _HUB_ID.fullmatch(repository):
        raise WeightsError(
            f"there is no file {place}: name one that is there, or ORGANISATION/REPOSITORY/FILE of the hub"
        )
    path = fetch(repository, name)
    if path is None:
        raise WeightsError(f"{repository} has no file {name}")
    return path


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a .safetensors file or a torch checkpoint by name; nothing in the file is executed.

    A checkpoint that nests them under "state_dict" is unwrapped. Raises WeightsError.
    """
    import torch
    from safetensors.torch import load_file

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols on its way to refusing a file
            is_plain = path.suffix == ".safetensors"
            state: Any = load_file(path) if is_plain else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, SafetensorError...: all say that the file is no good
        raise WeightsError(
            f"{path} cannot be read as weights ({_reason(error)}): it is damaged or something else, take it from its "
            "source again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise WeightsError(f"{path} holds no table of tensors: it is no checkpoint of weights alone")
    return state


def first_line(error: BaseException) -> str:
    """An exception's message, cut at its first line break."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _reason(error: Exception) -> str:
    """torch wraps the reason in advice on how to load the file all the same, which would execute it."""
    return first_line(error.__context__ or error).partition(" Please use")[0].partition(". ")[0].removesuffix(".")
