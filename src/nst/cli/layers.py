"""`nst layers`: the layers of both networks, their output shapes, and the pairs whose maps have the same size."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nst.cli.compose import hydra_main, readable_errors

if TYPE_CHECKING:
    from torch import nn

ALL = "all="  # an argument of this command only, not a key of a run


def layers(arguments: Sequence[str]) -> None:
    """List the layers of teacher and student, their output shapes, and the pairs whose maps have the same size.

    nst layers teacher=resnet56 model=resnet20 data=cifar10

    The arguments are those of `nst train`. Lists named layers only (without names, the last layer of each map size); with
    `all=true`, all layers. No data is read, and no weights are loaded or downloaded.
    """
    asked = [argument.lower() for argument in arguments if argument.startswith(ALL)]
    with readable_errors():
        if not {*asked} <= {"all=true", "all=false"}:
            raise ValueError(f"{asked[0]}: true or false is needed")
    others = [argument for argument in arguments if not argument.startswith(ALL)]
    hydra_main(partial(show, every="all=true" in asked), "config", others)


def show(cfg: DictConfig, every: bool) -> None:
    """Print the layers of both networks, and the pairs that fit.

    Raises:
        ValueError: a network that cannot be built, or a setting at fault.
    """
    from nst import build

    run, console = build.settings(cfg), Console()
    image = (run.data["channels"], run.data["size"], run.data["size"])
    student = layers_of(build.network("model", build.without_download(run.model), 0), image)
    console.print(listing(f"student: {run.model['name']}", student, every))
    if run.teacher.model is None:
        return
    teacher = layers_of(build.network("teacher.model", build.without_download(run.teacher.model), 0), image)
    console.print(listing(f"teacher: {run.teacher.model['name']}", teacher, every))
    pairs = matching(teacher, student)
    any_two = "no two layers have maps of the same size; any two can be paired, the teacher's map is then resized"
    print("teacher and student layers with maps of the same size:" if pairs else any_two)
    for pair in pairs:
        print("  " + " → ".join(f"{layer.short} ({layer.size})" for layer in pair))
    if pairs and any(term.loss.source == "teacher" and not term.loss.on_logits for term in build.terms(run)):
        own = [f"loss.{name}.layers" for name, node in cfg.loss.items() if OmegaConf.is_list(node.get("layers"))]
        names = [layer.short for layer in pairs[-1]]  # in quotes: YAML reads a name such as 0.10 as a number
        print(f'use the last: \'{[*own, "layers"][0]}=[{{teacher: "{names[0]}", student: "{names[1]}"}}]\'')


@dataclass(frozen=True)
class Layer:
    """One module of a network, in the order in which modules finish."""

    name: str  # "…:input" for a name of a module's input
    kind: str  # class
    shape: tuple[int, ...]  # of one image's output
    names: tuple[str, ...]  # in `model.named_layers`
    intact: bool  # False: a later operation writes into the output, so a layer here reads something else

    @property
    def short(self) -> str:
        """The shortest name that a run can have it by."""
        return self.names[0] if self.names else self.name

    @property
    def size(self) -> str:
        """Its shape, for people."""
        return "×".join(map(str, self.shape))


def layers_of(model: "nn.Module", image_shape: tuple[int, int, int]) -> list[Layer]:
    """The modules that output one tensor for images of `image_shape` `(C, H, W)`; if called more than once, the last call.

    Layers without maps, such as separate windows of the images, are left out.
    """
    import torch

    from nst.layers import LayerHooks, resolve

    class Everything(LayerHooks):
        def _keep(self, layer: str, convert: Any) -> Any:
            keep = super()._keep(layer, convert)

            def hook(*call: Any) -> None:
                with suppress(ValueError):
                    keep(*call)

            return hook

    named: dict[str, list[str]] = {}
    for name in getattr(model, "named_layers", {}):
        named.setdefault(resolve(model, name), []).append(name)
    modules, training = dict(model.named_modules()), model.training
    hooks = Everything(
        model, [*filter(None, modules), *(path for path in named if path.endswith(":input"))], versions=True
    )
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *image_shape))
    finally:
        model.train(training)
        hooks.remove()
    found, versions = [], hooks.versions or {}
    for path, feature in hooks.read().items():
        if isinstance(feature, torch.Tensor):
            kind, intact = type(modules[path.removesuffix(":input")]).__name__, feature._version == versions[path]
            found.append(Layer(path, kind, tuple(feature.shape[1:]), tuple(named.get(path, ())), intact))
    return found


def matching(teacher: Sequence[Layer], student: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """For each map size that both networks have, the last layer of each that is not overwritten, large maps first."""
    ends = [_ends(teacher), _ends(student)]
    sizes = sorted(ends[0].keys() & ends[1].keys(), key=lambda size: -size[0] * size[1])
    return [(ends[0][size], ends[1][size]) for size in sizes]


def _ends(network: Sequence[Layer]) -> dict[tuple[int, ...], Layer]:
    """The last layer of each size of maps with more than one position."""
    maps = [layer for layer in network if len(layer.shape) == 3 and layer.intact and not layer.name.endswith(":input")]
    return {layer.shape[1:]: layer for layer in maps if layer.shape[1] * layer.shape[2] > 1}


def listing(title: str, network: Sequence[Layer], every: bool) -> Table:
    """A line a layer; unless `every`, of named layers only, and of a network without any the last layer of each map size."""
    chosen = network if every else [layer for layer in network if layer.names] or [*_ends(network).values()]
    more = len(network) - len(chosen)
    table = Table(title=Text(title), title_justify="left", box=None, caption_justify="left")
    table.caption = f"and {more} more layers: all=true lists them" if more else None
    for column in ("layer", "module", "output", "also called"):
        table.add_column(column, overflow="fold")
    for layer in chosen:
        note = ", ".join(layer.names) if layer.intact else "overwritten by what follows: cannot be compared"
        table.add_row(Text(layer.name), layer.kind, layer.size, note)
    return table
