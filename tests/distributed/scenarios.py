"""Small trainings whose numbers must not depend on how many processes share the work.

Run by torchrun as a script, it writes what each scenario gives on this rank: `scenarios.py <folder> <cpu or cuda>`.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.kinds import Learned, Ramped, Relational, Remembering, SeveralLayers
from torch import Tensor, nn

from nst.config import TrainerConfig
from nst.data.memory import MemorySplit
from nst.data.mixing import MixingLoader
from nst.data.views import ViewScheme
from nst.dist import Dist, join
from nst.distiller import Distiller, Pair, Term
from nst.evaluate import evaluate
from nst.layers import LOGITS, feature_shapes
from nst.loop import Training
from nst.losses import (
    ABKD,
    AT,
    CATKD,
    CC,
    CRD,
    DIST,
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
    WKDL,
    CrossEntropy,
    FitNet,
)  # fmt: skip
from nst.optim import Step
from nst.teacher import LiveTeacher, Teacher

IMAGES, BATCH, STEPS = 51, 16, 6  # the fourth batch of an epoch has 3 images: parts of 1 and 2


class Network(nn.Module):
    """Two convolutions, with or without BN; the BN of the second is a layer (its hook must survive synchronised BN)."""

    def __init__(self, channels: int, bn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=not bn)
        self.bn1 = nn.BatchNorm2d(channels) if bn else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=not bn)
        self.bn2 = nn.BatchNorm2d(channels) if bn else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 10)
        self.named_layers = {"last": "bn2", "pooled": "fc:input"}

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn2(self.conv2(self.bn1(x).relu()))
        return self.fc(self.pool(x.relu()).flatten(1))


def data() -> MemorySplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return MemorySplit(images, torch.arange(IMAGES) % 10, ViewScheme(8, 1, False), (0.5,), (0.3,))


def chosen(losses: str) -> list[Term]:
    """`maps`; `kinds`: one that learns, one that relates images, one that remembers, …; `next`: of 2022 to 2025; `relations`: those between images."""
    logits, last = (Pair(LOGITS, LOGITS),), (Pair("last", "last"),)
    match losses:
        case "maps":
            return [
                Term("fitnet", FitNet(), 1.0, last),
                Term("at", AT(), 10.0, last),
                Term("nst_poly", NST(kernel="polynomial"), 50.0, last),
                Term("nst_gaussian", NST(kernel="gaussian"), 10.0, last),
            ]
        case "kinds":
            return [
                Term("learned", Learned(), 1.0, last),
                Term("relational", Relational(), 2.0, last),
                Term("remembering", Remembering(), 1.0, last),
                Term("ramped", Ramped(), 1.0, last),
                Term("several", SeveralLayers(), 1.0, (Pair("conv1", "conv1"), Pair("last", "last"))),
            ]
        case "next":  # without those that have batch norms, which see the images of a rank
            own = (Pair(LOGITS, "last"), Pair(LOGITS, LOGITS))
            return [
                Term("wttm", TTM(0.3, weighted=True), 1.0, logits),
                Term("nkd", NKD(), 0.5, logits),
                Term("rld", RLD(), 0.5, logits),
                Term("abkd", ABKD(), 1.0, logits),
                Term("wkd_l", WKDL(2.0, 30.0, decay_from=1, epochs=2), 0.5, logits),
                Term("cat_kd", CATKD(), 1.0, (Pair("cam", "cam"),)),
                Term("sdd", SDD("dkd"), 1.0, (Pair("logit_map", "logit_map"),)),
                Term("mgd", MGD(), 0.01, last),
                Term("ofa", OFA(), 0.5, own),
            ]
        case _:
            return [
                Term("sp", SP(), 3000.0, last),
                Term("rkd", RKD(), 1.0, last),
                Term("pkt", PKT(), 100.0, last),
                Term("cc", CC(), 1.0, last),
                Term("crd", CRD(negatives=20), 0.8, last),
                Term("dist", DIST(), 2.0, logits),
            ]


def training(
    here: Dist, *, bn: bool = False, with_labels: bool = True, losses: str = "maps", **settings: Any
) -> tuple[Training, Teacher]:
    """Several losses at once, from a teacher with more channels."""
    logits = (Pair(LOGITS, LOGITS),)
    terms = chosen(losses)
    if with_labels:
        terms += [Term("ce", CrossEntropy(), 1.0, logits), Term("kd", KD(), 4.0, logits)]
    torch.manual_seed(0)
    student, teacher = Network(6, bn), Network(8, True)
    shapes = [
        feature_shapes(net, ["conv1", "last", "logit_map", "cam", LOGITS], (1, 8, 8)) for net in (student, teacher)
    ]
    distiller = Distiller(student, terms, *shapes)
    for loss in distiller.losses.values():
        loss.init_memory(IMAGES)  # type: ignore[operator]
        if loss.teacher_layer is not None:
            loss.init_teacher(torch.rand(10, 10))  # type: ignore[operator]
    teacher.to(here.device)
    loader: Any = data().loader(BATCH, train=True, rank=here.rank, world=here.world, device=here.device)
    if "mixup" in settings:
        loader = MixingLoader(loader, data(), 10, settings["mixup"], settings["cutmix"])
    training = Training(
        distiller,
        loader,
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=1e-3),
        schedule=Step(),
        settings=TrainerConfig(
            epochs=2, batch_size=BATCH, channels_last=False, compile=False, clip_grad_norm=5.0, **settings
        ),
        dist=here,
    )
    return training, Teacher((LiveTeacher(teacher, distiller.target_specs),))


def train(it: Training, teacher: Teacher) -> dict[str, Any]:
    """What the log would say of each of the first steps, and what they make of the student."""
    logged: list[dict[str, Any]] = []
    seen: list[Tensor] = []
    it.distiller.train()
    while it.progress.step < STEPS:
        for batch, targets in teacher.targets(it.loader.epoch(*divmod(it.progress.step, it.loader.steps))):
            it.step(batch, targets)
            logged.append(it.means())
            seen.append(batch.indices)
            if it.progress.step == STEPS:
                break
    it.dist.broadcast(it.distiller.buffers())
    state = it.distiller.state_dict()
    if it.average is not None:
        it.dist.broadcast(it.average.values.values())
        state |= {f"average {name}": value for name, value in it.average.values.items()}
    return {"logged": logged, "state": state, "seen": seen}


SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts": {"accumulate": 3},
    "no_label": {"with_labels": False},
    "kinds": {"losses": "kinds"},
    "relations": {"losses": "relations"},
    "next": {"losses": "next"},
    "next_parts": {"losses": "next", "accumulate": 3},
    "recipe": {"mixup": 1.0, "cutmix": 1.0, "ema": 0.8},
}


def results(here: Dist) -> dict[str, Any]:
    """Everything, on this rank."""
    found: dict[str, Any] = {name: train(*training(here, **kind)) for name, kind in SCENARIOS.items()}
    torch.manual_seed(0)
    evaluation = data().loader(20, train=False, rank=here.rank, world=here.world, device=here.device)
    found["evaluation"] = vars(evaluate(Network(6, True).to(here.device), evaluation.epoch(0), here))
    return found


if __name__ == "__main__":
    with join(sys.argv[2]) as here:
        torch.save(results(here), Path(sys.argv[1]) / f"rank{here.rank}.pt")
