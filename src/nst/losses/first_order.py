"""Backward passes that cannot be differentiated again, and say so."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

MESSAGE = (
    "the gradient of this loss was differentiated a second time (a gradient penalty, or create_graph=True and a second "
    "backward pass); its backward pass is written out for first derivatives only: use the loss without such a penalty"
)


class Refuse(torch.autograd.Function):
    """The identity of its first argument, depending on the others too; its own backward pass raises."""

    @staticmethod
    def forward(ctx, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        raise NotImplementedError(MESSAGE)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates the `backward` of an autograd function: whoever differentiates its result gets a NotImplementedError.

    torch's `once_differentiable` raises only where the incoming gradient itself needs a gradient. In a gradient penalty
    it is a constant, and the second derivatives are then silently missing. The function must save its differentiable inputs
    (`ctx.save_for_backward`): the result is made to depend on them.
    """

    @wraps(backward)
    def wrapped(ctx: Any, *gradients: Tensor) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *gradients)  # a compiled graph refuses second derivatives itself
        inputs = [t for t in (*ctx.saved_tensors, *gradients) if isinstance(t, Tensor) and t.requires_grad]
        with torch.no_grad():
            result = backward(ctx, *gradients)
        results = result if isinstance(result, tuple) else (result,)
        return tuple(Refuse.apply(r, *inputs) if isinstance(r, Tensor) else r for r in results)

    return wrapped
