"""Two ranks do what one process does on the same global batches."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.faults.conftest import on_ranks
from tests.kinds import Ramped, Remembering, SeveralLayers
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
    """Two convolutions without a norm, which would see the images of a rank alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 10)
        self.named_layers = {"last": "conv2", "pooled": "fc:input"}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.conv2(self.conv1(x).relu()).relu()).flatten(1))


def data() -> MemorySplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return MemorySplit(images, torch.arange(IMAGES) % 10, ViewScheme(8, 1, False), (0.5,), (0.3,))


LOGIT, LAST = (Pair(LOGITS, LOGITS),), (Pair("last", "last"),)
TERMS: dict[str, Callable[[], list[Term]]] = {
    "labels": lambda: [Term("ce", of.CrossEntropy(), 1.0, LOGIT), Term("kd", of.KD(), 4.0, LOGIT)],
    "maps": lambda: [
        Term("fitnet", of.FitNet(), 1.0, LAST),
        Term("at", of.AT(), 10.0, LAST),
        Term("nst_poly", of.NST(kernel="polynomial"), 50.0, LAST),
        Term("nst_gaussian", of.NST(kernel="gaussian"), 10.0, LAST),
    ],
    "more": lambda: [  # without those that have batch norms
        Term("wttm", of.TTM(0.3, weighted=True), 1.0, LOGIT),
        Term("nkd", of.NKD(), 0.5, LOGIT),
        Term("rld", of.RLD(), 0.5, LOGIT),
        Term("abkd", of.ABKD(), 1.0, LOGIT),
        Term("wkd_l", of.WKDL(2.0, 30.0, decay_from=1, epochs=2), 0.5, LOGIT),
        Term("cat_kd", of.CATKD(), 1.0, (Pair("cam", "cam"),)),
        Term("sdd", of.SDD("dkd"), 1.0, (Pair("logit_map", "logit_map"),)),
        Term("mgd", of.MGD(), 0.01, LAST),
        Term("ofa", of.OFA(), 0.5, (Pair(LOGITS, "last"), *LOGIT)),
        Term("ramped", Ramped(), 1.0, LAST),
        Term("several", SeveralLayers(), 1.0, (Pair("conv1", "conv1"), *LAST)),
    ],
    "relations": lambda: [
        Term("sp", of.SP(), 3000.0, LAST),
        Term("rkd", of.RKD(), 1.0, LAST),
        Term("pkt", of.PKT(), 100.0, LAST),
        Term("cc", of.CC(), 1.0, LAST),
        Term("crd", of.CRD(negatives=20), 0.8, LAST),
        Term("dist", of.DIST(), 2.0, LOGIT),
        Term("remembering", Remembering(), 1.0, LAST),
    ],
}


def training(here: Dist, *losses: str, **settings: Any) -> tuple[Training, Teacher]:
    """Several losses at once, from a teacher with more channels."""
    terms = [term for name in losses for term in TERMS[name]()]
    torch.manual_seed(0)
    student, teacher = Network(6), Network(8).to(here.device)
    layers = ["conv1", "last", "logit_map", "cam", LOGITS]
    distiller = Distiller(student, terms, *(feature_shapes(net, layers, (1, 8, 8)) for net in (student, teacher)))
    for loss in distiller.losses.values():
        loss.init_memory(IMAGES)  # type: ignore[operator]
        if loss.teacher_layer is not None:
            loss.init_teacher(torch.rand(10, 10))  # type: ignore[operator]
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
    for step in range(STEPS):
        batch, targets = next(teacher.targets(it.loader.epoch(*divmod(step, it.loader.steps))))
        it.step(batch, targets)
        logged.append(it.means())
        seen.append(batch.indices)
    it.dist.broadcast(it.distiller.buffers())
    state = it.distiller.state_dict()
    if it.average is not None:
        it.dist.broadcast(it.average.values.values())
        state |= {f"average {name}": value for name, value in it.average.values.items()}
    return {"logged": logged, "state": state, "seen": seen}


SCENARIOS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": (["labels", "maps", "more"], {}),
    "parts": (["labels", "maps", "more"], {"accumulate": 3}),
    "no_label": (["maps"], {}),
    "relations": (["labels", "relations"], {}),
    "recipe": (["labels", "maps"], {"mixup": 1.0, "cutmix": 1.0, "ema": 0.8}),
}


def results(here: Dist) -> dict[str, Any]:
    """Everything, on this rank."""
    found: dict[str, Any] = {name: train(*training(here, *of, **own)) for name, (of, own) in SCENARIOS.items()}
    torch.manual_seed(0)
    evaluation = data().loader(20, train=False, rank=here.rank, world=here.world, device=here.device)
    metrics = {"macro": macro_accuracy, "first image": lambda logits, labels: logits[0, 0]}
    network, teacher = Network(6).to(here.device), Network(4)
    found["evaluation"] = evaluate(network, evaluation.epoch(0), here, metrics=metrics).as_dict()
    terms = [Term("at", of.AT(), 1.0, LAST), Term("rkd", of.RKD(), 1.0, LAST)]
    distiller = Distiller(network, terms, *(feature_shapes(net, ["last"], (1, 8, 8)) for net in (network, teacher)))
    images: Any = SimpleNamespace(train=data(), labeled=True, split=lambda name: data())
    live = LiveTeacher(teacher, distiller.target_specs)
    judge = feature_evaluation(distiller, live, images, here, TrainerConfig(eval_batch_size=20))
    found["features"] = judge("test", lambda: here.max(0)).as_dict()  # ranks that call unequally often would not end
    return found


def save_results(folder: Path) -> None:
    """As a rank."""
    with join("cpu") as here:
        torch.save(results(here), folder / f"rank{here.rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two finds."""
    folder = tmp_path_factory.mktemp("ranks")
    assert on_ranks(save_results, folder) == [0, 0]
    return [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(2)]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return results(Dist(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("name", SCENARIOS)
def test_losses_gradients_and_weights_are_those_of_one_process(name: str, ranks: Any, one: Any) -> None:
    """Loss terms, gradient norm and accuracy of every step; then weights, what losses learn and BN statistics, the same on both."""
    torch.testing.assert_close(ranks[0][name]["logged"], one[name]["logged"], rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(ranks[0][name]["state"], one[name]["state"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ranks[0][name]["state"], ranks[1][name]["state"], rtol=0, atol=0)
    assert ranks[0][name]["logged"] == ranks[1][name]["logged"]


def test_images_are_seen_once_in_an_epoch_and_in_an_evaluation(ranks: Any, one: Any) -> None:
    steps = -(-IMAGES // BATCH)
    epoch = torch.cat([part for rank in ranks for part in rank["plain"]["seen"][:steps]])
    assert epoch.sort().values.tolist() == list(range(IMAGES))
    assert [len(rank["plain"]["seen"][steps - 1]) for rank in ranks] == [1, 2]  # 3 images left for two ranks
    assert one["evaluation"]["images"] == IMAGES
    for rank in ranks:
        torch.testing.assert_close(rank["evaluation"], one["evaluation"], rtol=1e-6, atol=0)
        assert rank["features"] == one["features"]  # each batch is one rank's, so to the last bit


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(one: dict[str, Any]) -> None:
    torch.testing.assert_close(one["parts"]["state"], one["plain"]["state"], rtol=1e-4, atol=1e-6)
