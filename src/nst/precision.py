"""Autocast by the names that the configuration uses."""

import torch

PRECISIONS = ("fp32", "bf16", "fp16")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context of autocast to "bf16" or "fp16" on a device; with "fp32" it does nothing."""
    return torch.autocast(device.type, AUTOCAST.get(precision, torch.bfloat16), enabled=precision in AUTOCAST)


def check_precision(key: str, precision: str, device: torch.device) -> None:
    """Raises ValueError, naming `key`, for fp16 elsewhere than on a GPU."""
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"{key}=fp16 needs a CUDA device, this run is on the {device.type.upper()}; bf16 or fp32 runs here"
        )
