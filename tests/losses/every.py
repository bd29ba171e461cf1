"""Every loss with shapes it can be tried on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nst.losses import (
    ABKD,
    AT,
    CATKD,
    CC,
    CRD,
    DIST,
    DKD,
    KD,
    MGD,
    NKD,
    NST,
    OFA,
    PKT,
    RKD,
    RLD,
    SDD,
    SP,
    TTM,
    VID,
    WKDF,
    WKDL,
    FitNet,
    ReviewKD,
    TransferLoss,
)

IMAGES = 40

LOSSES: dict[str, Callable[[], TransferLoss]] = {
    "NST linear": lambda: NST("linear"),
    "NST gram": lambda: NST(implementation="gram"),
    "NST gram, c": lambda: NST(implementation="gram", c=0.5),
    "NST pairs": lambda: NST(implementation="pairs", c=0.5),
    "NST stream": lambda: NST(implementation="stream"),
    "NST degree 3": lambda: NST(degree=3),
    "NST gaussian": lambda: NST("gaussian"),
    "NST joint": lambda: NST("gaussian", sigma2="joint"),
    "NST official": lambda: NST(convention="official"),
    "NST crd": lambda: NST(convention="crd"),
    "AT": AT,
    "AT crd, p = 3": lambda: AT(3.0, "crd"),
    "AT torchdistill": lambda: AT(convention="torchdistill"),
    "AT zoo": lambda: AT(convention="zoo"),
    "FitNet": FitNet,
    "FitNet conv_bn_relu": lambda: FitNet("crd", "conv_bn_relu"),
    "KD": KD,
    "KD standardised": lambda: KD(standardize=True),
    "DKD": DKD,
    "DIST": DIST,
    "SP": SP,
    "RKD": RKD,
    "RKD crd": lambda: RKD(convention="crd"),
    "PKT": PKT,
    "PKT crd": lambda: PKT("crd"),
    "CC": CC,
    "CC crd": lambda: CC(convention="crd"),
    "VID": VID,
    "CRD": lambda: CRD(negatives=10),
    "ReviewKD": lambda: ReviewKD(warmup=0),
    "TTM": TTM,
    "WTTM": lambda: TTM(weighted=True),
    "NKD": NKD,
    "RLD": RLD,
    "ABKD": ABKD,
    "WKD-L": WKDL,
    "WKD-F": WKDF,
    "WKD-F bottleneck": lambda: WKDF(grid=4, projector="bottleneck", convention="official"),
    "CAT-KD": CATKD,
    "SDD": SDD,
    "SDD dkd": lambda: SDD("dkd"),
    "MGD": MGD,
    "OFA": OFA,
}

CLASS_MAPS = ("CAT-KD", "SDD", "SDD dkd")
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
        self.extra = {
            "labels": torch.arange(batch) % 3,
            "index": torch.arange(batch) * 2,
            "epoch": torch.tensor(1.0),
            "progress": torch.tensor(0.1),
            "seed": torch.tensor(7),
        }

    def targets(self) -> list[dict[str, Tensor]]:
        return [self.loss.target(t, s) for (s, _), t in zip(self.shapes, self.teachers, strict=True)]

    def value(self, students: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        given = [target | {name: self.extra[name] for name in self.loss.inputs} for target in targets]
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
