"""Optimizers, learning-rate schedules and averaged weights.

A schedule is a function of the step without state, so there is nothing to save or resume. Every schedule takes `warmup`, the
fraction of the run over which the rate first rises linearly.
"""

import difflib
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn

MakeOptimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]

Schedule = Callable[[float, int, int], float]
"""Interface of the group `schedule`: (optimizer's own rate, step, steps of the run) → rate; steps count from 0."""

NO_DECAY = "norm", "bias"  # parameters without weight decay: all of the normalisation layers, or those called `bias`
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def check_optimizer(make: MakeOptimizer, no_decay: Sequence[str]) -> None:
    """Try an optimizer on one parameter, so that a wrong one fails before any work.

    Raises:
        ValueError: it cannot be created or take a step, it has no learning rate, or `no_decay` is wrong.
    """
    if unknown := [group for group in no_decay if group not in NO_DECAY]:
        raise ValueError(f"no_decay is {list(no_decay)}; {unknown[0]!r} is none of {', '.join(NO_DECAY)}")
    arguments = make.keywords if isinstance(make, partial) else {}
    for name, p in signature(make.func).parameters.items() if isinstance(make, partial) else ():
        if isinstance(value := arguments.get(name), str) and (name == "lr" or isinstance(p.default, bool | float)):
            raise ValueError(f"{name} is {value!r}, a text; a number, true or false is needed")
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.ones(2, 2)
    try:
        optimizer = make([parameter])
        optimizer.step()
    except (TypeError, RuntimeError, AssertionError, ValueError, IndexError) as error:
        given = ", ".join(f"{name}={value}" for name, value in arguments.items()) or "no arguments"
        raise ValueError(f"{error}, with {given}") from error
    lr, momentum = optimizer.defaults.get("lr"), optimizer.defaults.get("momentum", 0)
    if type(lr) not in (int, float) or not 0 <= momentum < 1:
        raise ValueError(f"lr is {lr!r} and momentum is {momentum}; a number and 0 <= momentum < 1 are needed")


def make_optimizer(
    make: MakeOptimizer,
    module: nn.Module,
    no_decay: Collection[str] = (),
    lr_factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of `module`, in groups of the same rate and weight decay, the plain ones first.

    Each group stores its initial rate as `initial_lr`. Fused code is used where the class has it: there a scaler of gradients skips
    a step on the device.

    Args:
        lr_factors: part → factor of its rate; see `rate_factors`.

    Raises:
        ValueError: a part that `module` does not have.
    """
    factors = rate_factors(module, lr_factors or {})
    spared = {
        id(p)
        for layer in module.modules()
        for name, p in layer.named_parameters(recurse=False)
        if ("norm" in no_decay and isinstance(layer, NORMS)) or ("bias" in no_decay and name == "bias")
    }
    by_kind: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            kind = (factors.get(name, 1.0), id(p) in spared)
            by_kind.setdefault(kind, {"params": []} | ({"weight_decay": 0.0} if kind[1] else {}))["params"].append(p)
    kinds = sorted(by_kind, key=lambda kind: (kind[0] != 1, kind))
    groups = [by_kind[kind] for kind in kinds]
    of, settings = (make.func, make.keywords) if isinstance(make, partial) else (make, {})
    # with dampening SGD's first step differs from the others
    own = {"fused", "foreach", "capturable", "differentiable"} & settings.keys() or settings.get("dampening")
    fused = not own and getattr(of, "__module__", "").startswith("torch.optim")
    try:
        optimizer = partial(make, fused=True)(groups) if fused else make(groups)
    except (TypeError, RuntimeError):  # no fused code for this class or device
        optimizer = make(groups)
    for group, (factor, _) in zip(optimizer.param_groups, kinds, strict=True):
        group["initial_lr"] = group["lr"] * factor
        if type(optimizer) is torch.optim.SGD and group["momentum"] and not group["dampening"]:
            for p in group["params"]:  # created here, since a skipped first step would leave them unset
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def rate_factors(module: nn.Module, lr_factors: Mapping[str, float]) -> dict[str, float]:
    """The factors of trainable parameters, by their names in `module`, a `Distiller` or any network.

    Args:
        lr_factors: part → factor. A part is a module's or a parameter's name in the student (`fc`, `layer3.0`), `loss.NAME` for what a loss
            learns, or `loss` for what all do; of several that hold a parameter the longest counts.

    Raises:
        ValueError: a part without trainable parameters; names the nearest that has some.
    """
    names = {name: name for name, p in module.named_parameters() if p.requires_grad}
    for name in names:  # the student's own names; a loss's as in the configuration
        part, _, rest = name.partition(".")
        if part == "losses":
            loss, _, rest = rest.partition(".")
            names[name] = f"loss.{loss.split(':')[0]}.{rest}"
        elif part == "student":
            names[name] = rest
    factors: dict[str, float] = {}
    for part in sorted(lr_factors, key=len):
        held = [name for name, own in names.items() if f"{own}.".startswith(f"{part}.")]
        if not held:
            known = {own.rsplit(".", i)[0] for own in names.values() for i in range(own.count(".") + 1)}
            nearest = ", ".join(difflib.get_close_matches(part, known, n=3, cutoff=0.4)) or "none; fc is such a part"
            raise ValueError(f"lr_factors: nothing that is trained is called {part!r}; nearest: {nearest}")
        factors |= dict.fromkeys(held, lr_factors[part])
    return factors


class Warmup:
    """A linear rise up to the optimizer's own rate `lr`, then `after`."""

    def __init__(self, warmup: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is {warmup}; a fraction of the run, 0 <= warmup < 1, is needed")
        self.warmup = warmup

    def __call__(self, lr: float, step: int, steps: int) -> float:
        """The rate of `step` (0-based) of `steps`."""
        if step / steps < self.warmup:
            return lr * (step + 1) / (math.ceil(self.warmup * steps) + 1)
        return self.after(lr, step / steps)

    def after(self, lr: float, done: float) -> float:
        """The rate after the rise; `done` is the fraction of the run."""
        return lr


class Constant(Warmup):
    """The optimizer's own rate to the end."""


class Step(Warmup):
    """`lr · gamma^(milestones passed)`."""

    def __init__(self, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, warmup: float = 0.0) -> None:
        """Milestones are fractions of the run, so that a shorter run has the same shape of schedule."""
        super().__init__(warmup)
        if any(not 0 < m < 1 for m in milestones):
            raise ValueError(f"milestones are {list(milestones)}; fractions of the run are needed, such as [0.5,0.75]")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma is {gamma}; a factor above 0 and up to 1 is needed")
        self.milestones, self.gamma = sorted(milestones), gamma

    def after(self, lr: float, done: float) -> float:
        return lr * self.gamma ** bisect_right(self.milestones, done)


class Cosine(Warmup):
    """Half a cosine from `lr` to 0."""

    def after(self, lr: float, done: float) -> float:
        return lr * 0.5 * (1 + math.cos(math.pi * ((done - self.warmup) / (1 - self.warmup))))


class OneCycle(Warmup):
    """Linear up to `lr` at `warmup`, linear down to 0 at the end: strong for short runs."""

    def __init__(self, warmup: float = 0.2) -> None:
        super().__init__(warmup)

    def after(self, lr: float, done: float) -> float:
        return lr * (1 - (done - self.warmup) / (1 - self.warmup))


class AveragedWeights:
    """The averaged weights of a network: average ← decay · average + (1 − decay) · weights, after each step.

    They start from the initial weights. Floating buffers (BN statistics) are averaged, too; the others are copied. Unlike torch's
    `AveragedModel` it copies no hooks, and on a GPU it does not wait.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self._average = network, get_ema_multi_avg_fn(decay)
        self.values = {name: value.detach().clone() for name, value in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        return dict(chain(self.network.named_parameters(), self.network.named_buffers()))

    @torch.no_grad()
    def update(self) -> None:
        """Add the network's weights to the average."""
        weights = self._weights()
        floating = [name for name, value in self.values.items() if value.is_floating_point()]
        self._average([self.values[name] for name in floating], [weights[name] for name in floating], 0)
        for name in self.values.keys() - set(floating):
            self.values[name].copy_(weights[name])

    @torch.no_grad()
    def adopt(self, values: Mapping[str, Tensor] | None = None) -> None:
        """Copy the averaged weights, or others of these names, into the network."""
        for name, value in self._weights().items():
            value.copy_((values or self.values)[name])

    @contextmanager
    def adopted(self) -> Iterator[None]:
        """A block in which the network has its averaged weights; its own are restored afterwards."""
        own = {name: value.detach().clone() for name, value in self._weights().items()}
        self.adopt()
        try:
            yield
        finally:
            self.adopt(own)
