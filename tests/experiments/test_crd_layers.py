"""What each method of CRD's table compares: the layers and widths of the published codes, pair by pair.

Read in RepDistiller (`helper/loops.py`, `models/*.py`, commits eedab9d, b13aecc, 1143dfe) and, for ReviewKD, in mdistiller (`distillers/ReviewKD.py`,
`models/cifar/*.py`, e8c5bb3) and its authors' `CIFAR-100/model/reviewkd.py` (6607308); computed here from a network's modules.
"""

from functools import cache
from typing import Any

import pytest
import torch
from tests.experiments.test_experiments import composed
from torch import Tensor, nn
from torch.nn import functional as F

from nst import build
from nst.config import CONFIGS
from nst.layers import LayerHooks

PAIRS = sorted(path.stem for path in (CONFIGS / "experiment" / "crd").glob("*-*.yaml"))
METHODS = ("fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "nst", "crd", "review")


class Published:
    """f1 … of a network, the same before the ReLU (of teachers), the pooled vector, the logits."""

    def __init__(self, net: Any, x: Tensor) -> None:
        self.features: list[Tensor] = []
        self.preact: list[Tensor] = []
        kind = type(net).__name__
        if kind == "WideResNet":
            x = net.conv1(x)
            for block in (net.block1, net.block2, net.block3):
                self.features.append(x := block(x))
            f1, f2, f3 = self.features
            self.preact = [net.block2.layer[0].bn1(f1), net.block3.layer[0].bn1(f2), net.bn1(f3)]
            x = self.preact[-1].relu()
        elif kind == "CifarVGG":
            for k in range(5):
                before = net.get_submodule(f"block{k}")(x)
                x = before.relu()
                if k:
                    self.preact.append(before)
                    self.features.append(x)
                x = F.max_pool2d(x, 2) if k < 3 else x
        elif kind == "CifarMobileNetV2":
            x = net.conv1(x)
            for k, group in enumerate(net.blocks):
                x = group(x)
                if k in (1, 2, 4, 6):
                    self.features.append(x)
            x = net.conv2(x)
        else:
            x = net.bn1(net.conv1(x)).relu()
            for stage in (s for name, s in net.named_children() if name.startswith("layer")):
                x, last = stage[:-1](x), stage[-1]
                if kind in ("CifarResNet", "CifarBottleneckResNet"):
                    self.preact.append(self.sum_of_block(last, x))
                self.features.append(x := last(x))
            x = net.bn2(net.conv2(x)).relu() if hasattr(net, "bn2") else x
        self.pooled = x.mean(dim=(2, 3))
        classifier = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        self.logits = classifier(self.pooled)

    def sum_of_block(self, block: Any, x: Tensor) -> Tensor:
        out = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
        if hasattr(block, "conv3"):
            out = block.bn3(block.conv3(out.relu()))
        return out + (block.shortcut if hasattr(block, "shortcut") else block.downsample)(x)


def handed(method: str, teacher: Published, student: Published) -> list[tuple[Tensor, Tensor]]:
    """The pairs (teacher, student) that a method compares there."""
    stages, pooled = list(zip(teacher.features, student.features, strict=True)), [(teacher.pooled, student.pooled)]
    if method == "review":
        return [*zip(teacher.preact, student.features, strict=True), *pooled]
    whole = {"at": stages, "nst": stages, "vid": stages, "fitnet": stages[1:2], "sp": stages[-1:]}
    return whole.get(method, pooled)


@cache
def side(name: str) -> tuple[nn.Module, dict[str, Tensor], Published]:
    """A network in float64, its named layers for two images, and what the published code has for them."""
    net: Any = build.network("model", composed("data=cifar100", "data.root=nowhere", f"model={name}").model, 0).double()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight, 1, 0.1)
        nn.init.normal_(norm.bias, std=0.3)
        nn.init.normal_(norm.running_mean, std=0.1)  # pyright: ignore[reportArgumentType]
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hooks = LayerHooks(net, net.named_layers)
    with torch.no_grad():
        logits = net.eval()(images)
        layers, published = hooks.read(), Published(net, images)
    hooks.remove()
    torch.testing.assert_close(published.logits, logits)
    return net, layers, published


@pytest.mark.parametrize("pair", PAIRS)
def test_layers_widths_and_convention_are_the_published_ones(pair):
    run = composed(
        f"experiment=crd/{pair}", f"loss=[{','.join(f'crd/{method}' for method in METHODS)}]", "data.root=nowhere"
    )
    (teacher_net, teacher, from_teacher), (student_net, student, from_student) = (
        side(node["name"]) for node in (run.teacher.model, run.model)
    )
    terms = {term.name: term for term in build.terms(run, [student_net, teacher_net]) if term.loss.source == "teacher"}
    assert len(terms) == len(METHODS)
    for method, (name, term) in zip(METHODS, terms.items(), strict=True):
        assert run.loss[name].get("convention", "crd") == "crd"  # equations: tests/losses
        for names, (t, s) in zip(term.pairs, handed(method, from_teacher, from_student), strict=True):
            torch.testing.assert_close(teacher[names.teacher], t)
            torch.testing.assert_close(student[names.student], s)

    pairs, review = handed("review", from_teacher, from_student), terms["review"].loss
    review.setup(*([tuple(pair[own].shape[1:]) for pair in pairs] for own in (1, 0)))
    assert {stage.enter[0].out_channels for stage in review.stages} == {min(512, from_student.pooled.shape[1])}
    assert [stage.leave[0].out_channels for stage in review.stages] == [t.shape[1] for t, _ in pairs]
