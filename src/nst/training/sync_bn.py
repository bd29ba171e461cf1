"""Batch normalisation over the global batch: each rank's BN layers see the images of all ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _SumOverRanks.forward(None, grads[0].contiguous())


class PortableSyncBatchNorm(_BatchNorm):
    """`nn.SyncBatchNorm`, which is for GPUs only, in plain operations for every device; ranks may have unequal batches."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the layer it replaces has checked its own

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, ...]` normalised by mean and variance over B of all ranks and the positions."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        dims, shape = [d for d in range(x.dim()) if d != 1], (1, -1, *[1] * (x.dim() - 2))
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = _SumOverRanks.apply(torch.cat([x.sum(dims), count]))
        assert isinstance(sums, Tensor)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        squares = _SumOverRanks.apply(centred.square().sum(dims))
        assert isinstance(squares, Tensor)
        var = squares / count
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        self._track(mean.detach(), var.detach() * count / (count - 1))
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(unbiased, rate)


def sync_batch_norms(model: nn.Module, device: torch.device) -> None:
    """Turn every BN layer of `model` into its synchronised implementation, in place: hooks, parameters and buffers stay.

    Raises:
        ValueError: a layer that is more than BN (timm's fused BN and activation, say), whose function would change.
    """
    sync_class = nn.SyncBatchNorm if device.type == "cuda" else PortableSyncBatchNorm
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if type(module) not in PLAIN:
            raise ValueError(
                f"trainer.sync_bn=true: layer {name} is a {type(module).__name__}; it can synchronise torch's own "
                "BatchNorm layers only, so use trainer.sync_bn=false with this model"
            )
        module.__class__ = sync_class
        if isinstance(module, nn.SyncBatchNorm):
            module.process_group = None  # all ranks
