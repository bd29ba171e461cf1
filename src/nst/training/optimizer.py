"""An optimizer of any class over a module's parameters; non-finite steps can be skipped."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from inspect import signature
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

MakeOptimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]

NoDecay = Literal["norm", "bias"]
"""Parameters without weight decay: all of the normalisation layers, or those called `bias`."""

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def check_optimizer(make: MakeOptimizer, no_decay: Sequence[str]) -> None:
    """Try an optimizer on one parameter, so that a wrong one fails before any work.

    Raises:
        ValueError: it cannot be created or take a step, it has no learning rate, or `no_decay` is wrong.
    """
    if unknown := [group for group in no_decay if group not in get_args(NoDecay)]:
        raise ValueError(f"no_decay is {list(no_decay)}; {unknown[0]!r} is none of {', '.join(get_args(NoDecay))}")
    if isinstance(make, partial):  # fused code accepts only a bool for a flag
        for name, argument in signature(make.func).parameters.items():
            if isinstance(argument.default, bool) and not isinstance(value := make.keywords.get(name, False), bool):
                raise ValueError(f"{name} is {value!r}; true or false is needed")
    arguments = make.keywords if isinstance(make, partial) else {}
    for name in ("lr", "weight_decay", "momentum"):
        if isinstance(value := arguments.get(name), str):
            raise ValueError(f"{name} is {value!r}; a number is needed")
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.ones(2, 2)
    try:
        optimizer = make([parameter])
        optimizer.step()
    except (TypeError, RuntimeError, AssertionError, ValueError, IndexError) as error:
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise ValueError(f"{error}, with {given or 'no arguments'}") from error
    defaults = optimizer.defaults
    lr = defaults.get("lr")
    if not isinstance(lr, int | float) or isinstance(lr, bool):
        raise ValueError(f"lr is {lr!r}; the schedule needs a number")
    if not 0 <= defaults.get("momentum", 0) < 1:
        raise ValueError(f"momentum is {defaults['momentum']}; 0 <= momentum < 1 is needed")


def make_optimizer(make: MakeOptimizer, module: nn.Module, no_decay: Collection[str] = ()) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of `module`, in their order.

    Each group stores its initial rate as `initial_lr`. Fused code is used where the class has it: there a step with
    `found_inf` is skipped on the device; see `step_unless`.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    undecayed = {id(p) for p in _spared(module, no_decay)}
    groups: list[Any] = [p for p in named.values() if id(p) not in undecayed]
    if undecayed:
        groups = [
            {"params": groups},
            {"params": [p for p in named.values() if id(p) in undecayed], "weight_decay": 0.0},
        ]
    optimizer = _fused(make, groups)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if type(optimizer) is torch.optim.SGD:
        for group in optimizer.param_groups:
            for p in group["params"] if group["momentum"] and not group["dampening"] else []:
                # created here, since a skipped first step would leave them unset
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def _fused(make: MakeOptimizer, groups: list[Any]) -> torch.optim.Optimizer:
    optimizer_class = make.func if isinstance(make, partial) else make
    arguments = make.keywords if isinstance(make, partial) else {}
    dampened = arguments.get("dampening", 0)  # then SGD's first step differs from the others
    torch_class = getattr(optimizer_class, "__module__", "").startswith("torch.optim")
    if torch_class and not dampened and not {"fused", "foreach", "capturable", "differentiable"} & arguments.keys():
        try:
            return partial(make, fused=True)(groups)
        except (TypeError, RuntimeError):
            pass  # no fused code for this class or device
    return make(groups)


def _spared(module: nn.Module, no_decay: Collection[str]) -> Iterable[nn.Parameter]:
    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            norm = "norm" in no_decay and isinstance(submodule, NORMS)
            if parameter.requires_grad and (norm or ("bias" in no_decay and name == "bias")):
                yield parameter


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step, skipped if `bad` (a bool scalar on the device) is true; no host sync if the code is fused."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
    elif not bad:
        optimizer.step()
