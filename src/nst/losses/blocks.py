"""What losses with a written-out backward pass share: work on a few images at a time, and a refusal of second derivatives.

On a CPU most of the time of a plain elementwise operation on a whole batch goes into touching fresh memory: blocks, whose
temporaries stay in the processor's cache, make NST's Gram implementation 1.5 times faster, and its extra memory little more than the
gradient. On a GPU, and inside a compiled graph, which fuses, the batch is one block.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from nst.losses.base import working_dtype

CACHE_BYTES = 3 << 20
"""Size of one block's channel maps on a CPU."""


def image_blocks(x: Tensor, channels: int | None = None) -> list[slice]:
    """Consecutive slices of the batch for maps of the shape `[B, channels, N]`, by default x's own channels."""
    batch, own, n = x.shape
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, batch)]
    step = max(1, CACHE_BYTES // ((channels or own) * n * max(4, x.element_size())))
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


def blocks_of(batch: int, bytes_per_image: int, limit: int) -> list[slice]:
    """Slices of as many images as fit into `limit` bytes, at least one."""
    step = max(1, limit // bytes_per_image)
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


def join(pieces: list[Tensor]) -> Tensor:
    """The blocks' results as one batch."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def map_blocks(
    x: Tensor, dtype: torch.dtype, blocks: list[slice], compute: Callable[[slice, Tensor | None], Tensor]
) -> Tensor:
    """`compute(block, out)` for each block as one tensor of x's shape, laid out in memory like x.

    `out`, unless it is None, is where the result may be written at once, as with torch's own `out=`.
    """
    if len(blocks) == 1:
        return compute(blocks[0], None).to(dtype)
    result = torch.empty_like(x, dtype=dtype)
    direct = dtype == working_dtype(x)
    for block in blocks:
        values = compute(block, result[block] if direct else None)
        if not direct:
            result[block] = values
    return result


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
