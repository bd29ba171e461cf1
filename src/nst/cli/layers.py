"""`nst layers`: the layers of both networks, their output shapes, and the pairs whose maps have the same size."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from nst.cli.compose import hydra_main

if TYPE_CHECKING:
    from torch import nn


def layers(arguments: Sequence[str]) -> None:
    """List the layers of teacher and student, their output shapes, and the pairs whose maps have the same size.

    nst layers teacher=resnet56 model=resnet20 data=cifar10

    The arguments are those of `nst train`. Lists named layers only (without names, the last layer of each map size); with
    `all=true`, all layers. No data is read, and no weights are loaded or downloaded.
    """
    own = [argument for argument in arguments if argument.startswith("all=")]
    every = bool(own) and own[-1].lower() != "all=false"
    hydra_main(partial(show, every=every), "config", [argument for argument in arguments if argument not in own])


def show(cfg: DictConfig, every: bool) -> None:
    """Print the layers of both networks, and the pairs that fit. Raises ValueError for a network that cannot be built."""
    from nst import build
    from nst.layers import shown

    run, found = build.settings(cfg), dict[str, list[Layer]]()
    image = (run.data["channels"], run.data["size"], run.data["size"])
    for side, key, node in (("student", "model", run.model), ("teacher", "teacher.model", run.teacher.model)):
        if node is not None:
            found[side] = layers_of(build.network(key, build.without_download(node), 0), image)
            Console().print(listing(f"{side}: {node['name']}", found[side], every))
    if "teacher" not in found:
        return
    pairs = matching(found["teacher"], found["student"])
    any_two = "no two layers have maps of the same size; any two can be paired, the teacher's map is then resized"
    print("teacher and student layers with maps of the same size:" if pairs else any_two)
    for pair in pairs:
        print("  " + " → ".join(f"{layer.names[0]} ({shown(layer.shape)})" for layer in pair))
    if pairs and any(term.loss.source == "teacher" and not term.loss.on_logits for term in build.terms(run)):
        own = [f"loss.{name}.layers" for name, node in cfg.loss.items() if OmegaConf.is_list(node.get("layers"))]
        teacher, student = (layer.names[0] for layer in pairs[-1])  # in quotes: YAML reads 0.10 as a number
        print(f'use the last: \'{[*own, "layers"][0]}=[{{teacher: "{teacher}", student: "{student}"}}]\'')


@dataclass(frozen=True)
class Layer:
    """One module of a network, in the order in which modules finish."""

    names: tuple[str, ...]  # those in `model.named_layers`, then its path, "…:input" for a module's input
    kind: str  # class
    shape: tuple[int, ...]  # of one image's output
    intact: bool  # False: a later operation writes into the output, so a layer here reads something else


def layers_of(model: "nn.Module", image_shape: tuple[int, int, int]) -> list[Layer]:
    """The modules that output one tensor for images of `image_shape` `(C, H, W)`; if called more than once, the last call."""
    import torch

    from nst.layers import LayerHooks, resolve

    class Everything(LayerHooks):
        def _keep(self, layer: str, convert: Any) -> Any:
            keep = super()._keep(layer, convert)

            def hook(*call: Any) -> None:
                with suppress(ValueError):  # what has no maps, such as separate windows of the images
                    keep(*call)

            return hook

    modules, training, named = dict(model.named_modules()), model.training, dict[str, list[str]]()
    for name in getattr(model, "named_layers", {}):
        named.setdefault(resolve(model, name), []).append(name)
    inputs = [path for path in named if path.endswith(":input")]
    hooks = Everything(model, [*filter(None, modules), *inputs], versions=True)
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
            found.append(Layer((*named.get(path, ()), path), kind, tuple(feature.shape[1:]), intact))
    return found


def matching(*networks: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """For each map size (above 1×1) that all networks have, the last layer of each that is not overwritten, large maps first."""
    last = [
        {x.shape[1:]: x for x in network if len(x.shape) == 3 and x.intact and ":input" not in x.names[-1]}
        for network in networks
    ]
    sizes = sorted(set.intersection(*({*layers} for layers in last)), key=lambda size: -size[0] * size[1])
    return [tuple(layers[size] for layers in last) for size in sizes if size != (1, 1)]


def listing(title: str, network: Sequence[Layer], every: bool) -> Table:
    """A line a layer; unless `every`, of named layers only, and of a network without any the last layer of each map size."""
    from nst.layers import shown

    chosen = network if every else [x for x in network if x.names[1:]] or [x for (x,) in matching(network)]
    columns = (Column(name, overflow="fold") for name in ("layer", "module", "output", "also called"))
    table = Table(*columns, title=Text(title), title_justify="left", box=None, caption_justify="left")
    if more := len(network) - len(chosen):
        table.caption = f"and {more} more layers: all=true lists them"
    for layer in chosen:
        note = ", ".join(layer.names[:-1]) if layer.intact else "overwritten by what follows: cannot be compared"
        table.add_row(Text(layer.names[-1]), layer.kind, shown(layer.shape), note)
    return table
