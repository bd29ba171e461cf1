"""Gradient scaling for fp16: torch's GradScaler, while the trainer itself takes or skips the step."""

from typing import Any

import torch
from torch import Tensor


class GradientScaler:
    """Multiplies the loss so that small gradients do not vanish in fp16, and adapts the scale.

    A step whose gradient is not finite is skipped and halves the scale; 2000 good ones in a row double it. That is normal, so
    such a step counts as a fault only at a scale of 1 or less, where a lower scale would not help.
    """

    def __init__(self, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type)
        self._scaler.scale(torch.zeros(1, device=device))  # creates the scale, None until then

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to run backward from."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide all gradients by the scale; once a step, after the last backward pass and before clipping."""
        self._scaler.unscale_(optimizer)

    def can_be_lowered(self) -> Tensor:
        """Bool scalar on the device: whether the scale of this step is above 1."""
        scale = self._scaler._scale
        assert scale is not None
        return (scale > 1).reshape(())

    def update(self, skipped: Tensor) -> None:
        """Set the scale of the next step; `skipped`: a bool scalar on the device. No host sync."""
        found_inf: dict[Any, Tensor] = next(iter(self._scaler._per_optimizer_states.values()))["found_inf_per_device"]
        for value in found_inf.values():  # also where only the norm of finite gradients is not finite
            value.copy_(skipped.float().reshape(value.shape))
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """For a checkpoint. A host sync."""
        return self._scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a `state()`."""
        self._scaler.load_state_dict(state)
