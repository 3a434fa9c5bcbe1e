"""Where a model runs and in which precision, from what was asked for."""

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def chosen_device(name: str) -> torch.device:
    """The torch device of that name, by default cuda where there is one. Raises ValueError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device={name!r} is no torch device: take cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: torch finds no CUDA device here; take device=cpu")
    return device


def chosen_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of that name, by default float16 on cuda and float32 elsewhere. Raises ValueError."""
    if name and name not in DTYPES:
        raise ValueError(f"dtype={name!r}: must be one of {', '.join(DTYPES)}")
    return DTYPES[name or ("float16" if device.type == "cuda" else "float32")]
