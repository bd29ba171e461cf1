"""Every loss with shapes it can be tried on."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nst import losses
from nst.losses import TransferLoss

IMAGES = 40

LOSSES: dict[str, Callable[[], TransferLoss]] = {
    "NST linear": lambda: losses.NST("linear"),
    "NST gram": lambda: losses.NST(implementation="gram"),
    "NST gram, c": lambda: losses.NST(implementation="gram", c=0.5),
    "NST pairs": lambda: losses.NST(implementation="pairs", c=0.5),
    "NST stream": lambda: losses.NST(implementation="stream"),
    "NST degree 3": lambda: losses.NST(degree=3),
    "NST gaussian": lambda: losses.NST("gaussian"),
    "NST joint": lambda: losses.NST("gaussian", sigma2="joint"),
    "NST official": lambda: losses.NST(convention="official"),
    "NST crd": lambda: losses.NST(convention="crd"),
    "AT crd, p = 3": lambda: losses.AT(3.0, "crd"),
    "AT torchdistill": lambda: losses.AT(convention="torchdistill"),
    "AT zoo": lambda: losses.AT(convention="zoo"),
    "FitNet conv_bn_relu": lambda: losses.FitNet("crd", "conv_bn_relu"),
    "KD standardised": lambda: losses.KD(standardize=True),
    "RKD crd": lambda: losses.RKD(convention="crd"),
    "PKT crd": lambda: losses.PKT("crd"),
    "CC crd": lambda: losses.CC(convention="crd"),
    "CRD": lambda: losses.CRD(negatives=10),
    "WTTM": lambda: losses.TTM(weighted=True),
    "WKDF bottleneck": lambda: losses.WKDF(grid=4, projector="bottleneck", convention="official"),
    "WKDL decays": lambda: losses.WKDL(decay_from=0, epochs=4),
    "SDD dkd": lambda: losses.SDD("dkd"),
}
for _name in losses.__all__:  # the others with their defaults
    _class = getattr(losses, _name)
    if inspect.isclass(_class) and issubclass(_class, TransferLoss) and not inspect.isabstract(_class):
        LOSSES.setdefault(_name, _class)
del LOSSES["CrossEntropy"]  # of labels

CLASS_MAPS = ("CATKD", "SDD", "SDD dkd")
LOGITS_ONLY = ("OFA",)


class Case:
    """A loss that is set up, and features of a batch; lists of them where it looks at several layers."""

    def __init__(self, name: str, batch: int = 4, layout: torch.memory_format = torch.contiguous_format) -> None:
        torch.manual_seed(0)
        self.loss = LOSSES[name]()
        if self.loss.on_logits:
            student, teacher = [(10,)], [(10,)]
        elif name in CLASS_MAPS:
            student, teacher = [(10, 8, 8)], [(10, 4, 4)]
        elif name in LOGITS_ONLY:
            student, teacher = [(24, 8, 8), (32, 4, 4), (10,)], [(10,)] * 3
        else:
            student, teacher = [(24, 8, 8), (32, 4, 4)], [(40, 8, 8), (20, 4, 4)]
        if not self.loss.all_layers:
            student, teacher = student[:1], teacher[:1]
        self.shapes = list(zip(student, teacher, strict=True))
        self.loss.setup(*((student, teacher) if self.loss.all_layers else (student[0], teacher[0])))
        self.loss.init_memory(IMAGES)
        if self.loss.teacher_layer is not None:
            features, labels = torch.randn(60, 5), torch.arange(60) % 10
            self.loss.init_teacher(self.loss.teacher_statistics(features, labels))
        make = [torch.randn(batch, *shape) for shape in student + teacher]
        make = [x.to(memory_format=layout) if x.ndim == 4 else x for x in make]
        self.students, self.teachers = make[: len(student)], make[len(student) :]
        self.extra = {"labels": torch.arange(batch) % 3, "index": torch.arange(batch) * 2, "seed": torch.tensor(7)}
        self.extra |= {"epoch": torch.tensor(1.0), "progress": torch.tensor(0.1)}

    def targets(self) -> list[dict[str, Tensor]]:
        return [self.loss.target(t, s) for (s, _), t in zip(self.shapes, self.teachers, strict=True)]

    def value(self, students: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        added = {name: self.extra[name] for name in self.loss.inputs if name in self.extra}
        given = [target | added for target in targets]
        arguments: Any = (students, given) if self.loss.all_layers else (students[0], given[0])
        return self.loss(*arguments)

    def step(self, targets: list[dict[str, Tensor]]) -> list[Tensor]:
        """Value and gradients of features and parameters, from the same buffers each time."""
        state = {name: tensor.clone() for name, tensor in self.loss.state_dict().items()}
        students = [x.clone(memory_format=torch.preserve_format).requires_grad_(True) for x in self.students]
        value = self.value(students, targets)
        gradients = torch.autograd.grad(value, [*students, *self.loss.parameters()], allow_unused=True)
        self.loss.load_state_dict(state)
        return [value.detach(), *(g for g in gradients if g is not None)]
