"""uint8 pixels → normalised float32."""

from collections.abc import Sequence

import torch
from torch import Tensor


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(a, b), each [C] float32, with a · pixel + b = (pixel / 255 − mean) / std."""
    mean64, std64 = torch.tensor(list(mean), dtype=torch.float64), torch.tensor(list(std), dtype=torch.float64)
    return (1 / (255 * std64)).float(), (-mean64 / std64).float()
