"""Autocast by the names that the configuration uses. The command line checks these without torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16", "fp16")


def autocast(device: "torch.device", precision: str) -> "torch.autocast":
    """A context of autocast to "bf16" or "fp16" on a device; with "fp32" it does nothing."""
    import torch

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def check_precision(key: str, precision: str, device: "torch.device") -> None:
    """Raises ValueError, naming `key`, for fp16 elsewhere than on a GPU."""
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"{key}=fp16 needs a CUDA device, this run is on the {device.type.upper()}; bf16 or fp32 runs here"
        )
