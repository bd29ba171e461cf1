"""Two ranks, joined over the network as two machines are, do what one process does on the same global batches.

As a script, started by torchrun, it writes what each scenario gives on this rank: `test_ranks.py <folder>`.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.distributed.conftest import output, torchrun
from tests.kinds import Learned, Ramped, Relational, Remembering, SeveralLayers
from torch import Tensor, nn

from nst import losses as of
from nst.config import TrainerConfig
from nst.data.batch import Loader, MixingLoader
from nst.data.memory import MemorySplit, ViewScheme
from nst.dist import Dist, join
from nst.distiller import Distiller, Pair, Term
from nst.evaluate import evaluate, feature_evaluation, macro_accuracy
from nst.layers import LOGITS, feature_shapes
from nst.loop import Training
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


LOGIT, LAST = (Pair(LOGITS, LOGITS),), (Pair("last", "last"),)
TERMS: dict[str, Callable[[], list[Term]]] = {
    "maps": lambda: [
        Term("fitnet", of.FitNet(), 1.0, LAST),
        Term("at", of.AT(), 10.0, LAST),
        Term("nst_poly", of.NST(kernel="polynomial"), 50.0, LAST),
        Term("nst_gaussian", of.NST(kernel="gaussian"), 10.0, LAST),
    ],
    "kinds": lambda: [
        Term("learned", Learned(), 1.0, LAST),
        Term("relational", Relational(), 2.0, LAST),
        Term("remembering", Remembering(), 1.0, LAST),
        Term("ramped", Ramped(), 1.0, LAST),
        Term("several", SeveralLayers(), 1.0, (Pair("conv1", "conv1"), *LAST)),
    ],
    "next": lambda: [  # without those that have batch norms, which see the images of a rank
        Term("wttm", of.TTM(0.3, weighted=True), 1.0, LOGIT),
        Term("nkd", of.NKD(), 0.5, LOGIT),
        Term("rld", of.RLD(), 0.5, LOGIT),
        Term("abkd", of.ABKD(), 1.0, LOGIT),
        Term("wkd_l", of.WKDL(2.0, 30.0, decay_from=1, epochs=2), 0.5, LOGIT),
        Term("cat_kd", of.CATKD(), 1.0, (Pair("cam", "cam"),)),
        Term("sdd", of.SDD("dkd"), 1.0, (Pair("logit_map", "logit_map"),)),
        Term("mgd", of.MGD(), 0.01, LAST),
        Term("ofa", of.OFA(), 0.5, (Pair(LOGITS, "last"), *LOGIT)),
    ],
    "relations": lambda: [
        Term("sp", of.SP(), 3000.0, LAST),
        Term("rkd", of.RKD(), 1.0, LAST),
        Term("pkt", of.PKT(), 100.0, LAST),
        Term("cc", of.CC(), 1.0, LAST),
        Term("crd", of.CRD(negatives=20), 0.8, LAST),
        Term("dist", of.DIST(), 2.0, LOGIT),
    ],
}


def training(
    here: Dist, *, bn: bool = False, with_labels: bool = True, losses: str = "maps", **settings: Any
) -> tuple[Training, Teacher]:
    """Several losses at once, from a teacher with more channels."""
    terms = TERMS[losses]()
    if with_labels:
        terms += [Term("ce", of.CrossEntropy(), 1.0, LOGIT), Term("kd", of.KD(), 4.0, LOGIT)]
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
    mixing = {key: settings[key] for key in ("mixup", "cutmix") if key in settings}
    kind, more = (MixingLoader, {"num_classes": 10}) if mixing else (Loader, {})
    loader = kind(data(), BATCH, True, 0, here.rank, here.world, here.device, **mixing, **more)
    own = TrainerConfig(epochs=2, batch_size=BATCH, channels_last=False, compile=False, clip_grad_norm=5.0, **settings)
    sgd = partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=1e-3)
    training = Training(distiller, loader, optimizer=sgd, schedule=Step(), settings=own, dist=here)
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
    metrics = {"macro": macro_accuracy, "first image": lambda logits, labels: logits[0, 0]}
    network = Network(6, True).to(here.device)
    found["evaluation"] = evaluate(network, evaluation.epoch(0), here, metrics=metrics).as_dict()
    terms, teacher = [Term("at", of.AT(), 1.0, LAST), Term("rkd", of.RKD(), 1.0, LAST)], Network(4, True)
    shapes = [feature_shapes(net, ["last"], (1, 8, 8)) for net in (network, teacher)]
    distiller = Distiller(network, terms, *shapes)
    images: Any = SimpleNamespace(train=data(), labeled=True, split=lambda name: data())
    live = LiveTeacher(teacher, distiller.target_specs)
    judge = feature_evaluation(distiller, live, images, here, TrainerConfig(eval_batch_size=20))
    found["features"] = judge("test", lambda: here.max(0)).as_dict()  # ranks that call unequally often would not end
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two nodes with one process finds; they meet at a port of the first, as on a cluster."""
    folder = tmp_path_factory.mktemp("ranks")
    for node in torchrun(__file__, str(folder), nodes=2):
        output(node)
    return [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(2)]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return results(Dist(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("name", SCENARIOS)
def test_losses_gradients_and_weights_are_those_of_one_process(
    name: str, ranks: list[dict[str, Any]], one: dict[str, Any]
) -> None:
    """Loss terms, gradient norm and accuracy of every step; then weights, what losses learn and BN statistics, the same on both."""
    for two_ranks, single in zip(ranks[0][name]["logged"], one[name]["logged"], strict=True):
        torch.testing.assert_close(flat(two_ranks), flat(single), rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(ranks[0][name]["state"], one[name]["state"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ranks[0][name]["state"], ranks[1][name]["state"], rtol=0, atol=0)
    assert ranks[0][name]["logged"] == ranks[1][name]["logged"]


def flat(logged: dict[str, Any]) -> dict[str, float]:
    terms = logged["terms"]
    return {key: float(value) for key, value in {**logged, **terms}.items() if not isinstance(value, dict)}


def test_images_are_seen_once_in_an_epoch_and_in_an_evaluation(
    ranks: list[dict[str, Any]], one: dict[str, Any]
) -> None:
    steps = -(-IMAGES // BATCH)
    epoch = torch.cat([part for rank in ranks for part in rank["plain"]["seen"][:steps]])
    assert epoch.sort().values.tolist() == list(range(IMAGES))
    assert [len(rank["plain"]["seen"][steps - 1]) for rank in ranks] == [1, 2]  # 3 images left for two ranks
    assert one["evaluation"]["images"] == IMAGES
    for rank in ranks:
        torch.testing.assert_close(rank["evaluation"], one["evaluation"], rtol=1e-6, atol=0)
        assert rank["features"] == one["features"]  # each batch is one rank's, so to the last bit


@pytest.mark.parametrize(("parts", "whole"), [("parts", "plain"), ("next_parts", "next")])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(parts: str, whole: str, one: dict[str, Any]) -> None:
    """Without BN, which sees each part alone."""
    torch.testing.assert_close(one[parts]["state"], one[whole]["state"], rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    with join("cpu") as here:
        torch.save(results(here), Path(sys.argv[1]) / f"rank{here.rank}.pt")
