"""Taps: layer names → features.

A tap is `"module.name"` (that module's output) or `"module.name:input"` (its first input; the last call counts when
a module is called several times in one forward pass). A model's own `taps` attribute gives names to common places:
`"last"` (output of the last stage, after its last ReLU), `"last_pre_relu"`, `"stage1"` …
"""

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LOGITS = "logits"  # the tap that is the model's own output


def resolve(model: nn.Module, tap: str) -> str:
    """The module path behind a tap: a role in `model.taps`, or a module's own name.

    Raises:
        ValueError: if the model has neither; names the nearest ones.
    """
    roles: dict[str, str] = getattr(model, "taps", {})
    path = roles.get(tap, tap)
    modules = dict(model.named_modules())
    name = path.removesuffix(":input")
    if path == LOGITS or (name and name in modules):
        return path
    near = difflib.get_close_matches(tap, [*roles, *(m for m in modules if m)], n=4, cutoff=0.4)
    raise ValueError(
        f"unknown layer '{tap}' in {type(model).__name__}: "
        f"{'nearest names: ' + ', '.join(near) + '; ' if near else ''}"
        f"named taps: {', '.join(roles) or 'none'}; any module name works too"
    )


class Taps:
    """Keeps the features of named places while a model runs.

    Attach before `torch.compile`: hooks added later never fire in a compiled model.
    """

    def __init__(self, model: nn.Module, taps: Iterable[str]) -> None:
        """Attach to `model`.

        Args:
            taps: roles or module names; see the module's docstring. `"logits"` needs no hook and is ignored here.

        Raises:
            ValueError: for a name the model does not have.
        """
        self.features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        modules = dict(model.named_modules())
        for tap in dict.fromkeys(taps):
            path = resolve(model, tap)
            if path == LOGITS:
                continue
            if path.endswith(":input"):
                handle = modules[path.removesuffix(":input")].register_forward_pre_hook(self._keep_input(tap))
            else:
                handle = modules[path].register_forward_hook(self._keep_output(tap))
            self._handles.append(handle)

    def _keep_output(self, tap: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.features[tap] = output

        return hook

    def _keep_input(self, tap: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.features[tap] = inputs[0]

        return hook

    def read(self) -> dict[str, Tensor]:
        """The features of the last forward pass, handed over: nothing is kept."""
        features, self.features = self.features, {}
        return features

    def remove(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Versions(Taps):
    """Also remembers each feature's version, which an operation in place raises."""

    def __init__(self, model: nn.Module, taps: Iterable[str]) -> None:
        self.versions: dict[str, int] = {}
        super().__init__(model, taps)

    def _keep_output(self, tap: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self.features[tap] = output
            if isinstance(output, Tensor):
                self.versions[tap] = output._version

        return hook

    def _keep_input(self, tap: str) -> Any:
        keep = self._keep_output(tap)
        return lambda module, inputs: keep(module, None, inputs[0])


@torch.no_grad()
def feature_shapes(
    model: nn.Module, taps: Iterable[str], image_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Shape of one image's feature at each tap, found by running one blank image.

    Args:
        image_shape: `(C, H, W)`.

    Raises:
        ValueError: for an unknown tap, one that is not reached or yields no `[B, ...]` tensor, or one whose feature
            is overwritten later in the forward pass.
    """
    taps = list(taps)
    recorder, training = _Versions(model, taps), model.training
    parameter = next(model.parameters())
    try:
        logits = model.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(training)
        recorder.remove()
    features = recorder.read() | {LOGITS: logits}
    for tap in taps:
        if not isinstance(features.get(tap), Tensor):
            raise ValueError(f"layer '{tap}' of {type(model).__name__} yields no tensor in a forward pass")
        if tap in recorder.versions and features[tap]._version != recorder.versions[tap]:
            raise ValueError(
                f"layer '{tap}' of {type(model).__name__} is overwritten by what follows, such as a ReLU in place: tap "
                "the layer that writes, or make it inplace=False"
            )
    return {tap: tuple(features[tap].shape[1:]) for tap in taps}
