"""Every setting of configs/experiment composes with every method of its tables, builds and takes two steps."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from tests.data.samples import encode, noise, write_shard

import nst.config  # noqa: F401  (registers the schema)
from nst import build
from nst.config import CONFIGS
from nst.loop import Training
from nst.tables.file import read_table
from nst.teacher import LiveTeacher, Teacher

FOLDER = CONFIGS / "experiment"
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml") if path.stem != "base")
TABLES = sorted(str(f.relative_to(CONFIGS / "table").with_suffix("")) for f in (CONFIGS / "table").rglob("*.yaml"))
STEPS = 2


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By data set: overrides that point at tiny images laid out as the real ones."""
    cifar10, cifar100, imagenet = (tmp_path_factory.mktemp(name) for name in ("ten", "hundred", "imagenet"))
    images = [encode(pixels) for pixels in noise(100)]
    for split in ("train", "test"):
        write_shard(cifar10 / f"{split}-0.parquet", images, [i % 10 for i in range(100)])
        write_shard(cifar100 / f"{split}-0.parquet", images, list(range(100)), label="fine_label")
    for split in ("train", "val"):
        for label in range(4):
            folder = imagenet / split / f"class{label}"
            folder.mkdir(parents=True)
            Image.fromarray(np.asarray(noise(1, 80, label)[0])).save(folder / "image.jpg")
    photographs = [f"data.root={imagenet}", "data.num_classes=4", "data.size=64", "data.resize=72"]
    return {
        "digits": [],
        "cifar100": [f"data.root={cifar100}"],
        "cifar10": [f"data.root={cifar10}", "data.limit=null"],
        "imagenet": photographs,
        "folder": photographs,
    }


@pytest.fixture(scope="module", autouse=True)
def build_each_network_once() -> Iterator[None]:
    """ResNet-1001 takes seconds to make: experiments share networks, each time with their first weights."""
    build_one = build.network
    made: dict[str, tuple[torch.nn.Module, dict[str, torch.Tensor]]] = {}

    def once(key: str, node: Any, seed: int) -> torch.nn.Module:
        name = f"{key} {dict(node)} {seed}"
        if name not in made:
            network = build_one(key, node, seed)
            if key == "teacher.model":
                settle(network, node["in_channels"])
            made[name] = network, {k: v.clone() for k, v in network.state_dict().items()}
        network, first = made[name]
        network.load_state_dict(first)
        return network

    patch = pytest.MonkeyPatch()
    patch.setattr(build, "network", once)
    patch.setattr(build, "feature_shapes", cache_shapes(build.feature_shapes))
    yield
    patch.undo()


@torch.no_grad()
def settle(network: torch.nn.Module, channels: int) -> None:
    """Give the batch norms the statistics of some noise: in `eval()` 333 untrained residual blocks overflow."""
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(torch.randn(2, channels, 64, 64))


def cache_shapes(find: Any) -> Any:
    @cache
    def cached(model: torch.nn.Module, layers: tuple[str, ...], image: tuple[int, int, int], trained: bool) -> Any:
        return find(model, list(layers), image, trained)

    return lambda model, layers, image, trained=False: cached(model, tuple(layers), image, trained)


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@cache
def cells() -> list[list[str]]:
    """The overrides of every row of every table; of CRD's pairs and of sizes one with all methods, the others with NST."""
    found = []
    for name in TABLES:
        table = read_table(name)
        for group in table.groups:
            for row in group.rows:
                words = [*table.overrides, *row.run]
                whole = not name.startswith(("crd", "study")) or group.name in ("resnet56-resnet20", "5000")
                if whole or row.name in ("nst", "at_nst_poly"):
                    found.append(words)
    return found


@pytest.mark.parametrize("words", cells(), ids=lambda words: " ".join(words[-3:]))
def test_composes_builds_and_takes_two_steps(words, roots):
    data = next((key for key in roots if any(key in word for word in words)), None) or (
        "cifar100" if any("crd" in word for word in words) else "digits"
    )  # cifar100 stands before cifar10
    larger = (
        ["data.size=160", "data.resize=160"] if "loss.wkd_f.grid=4" in words else []
    )  # of a grid a cell needs two positions
    small = [*roots[data], *larger, "trainer.batch_size=2", "trainer.compile=false"]
    run = build.settings(composed(*words, *small))
    networks, dataset = build.networks(run), cached_data(run, str(small[:-2]))
    sources = []
    if networks.teacher is not None:
        sources = [LiveTeacher(networks.teacher, networks.distiller.target_specs)]
    loader = dataset.split("train").loader(2, train=True)
    build.init_memory(run, networks.distiller, len(dataset.train))
    for loss in networks.distiller.losses.values():
        if loss.teacher_layer is not None:
            loss.init_teacher(torch.eye(dataset.num_classes))
    training = Training(networks.distiller, loader, **build.optimization(run), settings=run.trainer)
    for _, (batch, targets) in zip(range(STEPS), Teacher(sources).targets(loader.epoch(0)), strict=False):
        training.step(batch, targets)
    logged = training.means()
    networks.distiller.hooks.remove()
    for live in sources:
        live.hooks.remove()
    assert training.progress.step == STEPS
    assert set(logged["terms"]) == {name for name, node in run.loss.items() if node["weight"]}
    assert np.isfinite(logged["loss"])


DATA: dict[str, Any] = {}


def cached_data(run: Any, key: str) -> Any:
    if key not in DATA:
        DATA[key] = build.dataset(run)
    return DATA[key]


@pytest.mark.parametrize("name", NAMES)
def test_is_a_short_difference_with_a_full_header(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert len([line for line in text.splitlines() if not line.startswith("#")]) <= 35
    assert f"nst train experiment={name} loss=" in text
    assert "nst reproduce table=" in text


def test_every_setting_is_in_a_table():
    used = {word for words in cells() for word in words}
    assert all(f"experiment={name}" in used for name in NAMES)


def test_crd_s_settings():
    run = build.settings(composed("experiment=crd/resnet56-resnet20", "loss=crd/kd"))
    assert (run.trainer.epochs, run.trainer.batch_size, run.teacher.train.epochs) == (240, 64, 240)
    assert (run.optim["lr"], run.optim["weight_decay"], run.optim["momentum"]) == (0.05, 5e-4, 0.9)
    assert run.schedule["milestones"] == [150 / 240, 180 / 240, 210 / 240]
    assert (run.loss["ce"]["weight"], run.loss["kd"]["weight"], run.loss["kd"]["temperature"]) == (0.1, 0.9, 4.0)
    slower = build.settings(composed("experiment=crd/vgg13-mobilenet_v2_half", "loss=crd/kd"))
    assert slower.optim["lr"] == 0.01  # students of other families


def test_crd_s_residual_networks_have_projections():
    for name, counts in (("resnet56-resnet20", (861_620, 278_324)), ("resnet110-resnet32", (1_736_564, 472_756))):
        networks = build.networks(build.settings(composed(f"experiment=crd/{name}", "loss=kd")))
        assert networks.teacher is not None
        assert (build.count_parameters(networks.teacher), build.count_parameters(networks.distiller.student)) == counts


def test_the_paper_s_settings():
    for data in ("cifar10", "cifar100"):
        run = build.settings(composed(f"experiment=paper/{data}", "loss=kd_fitnet_nst_poly"))
        assert (run.trainer.epochs, run.trainer.batch_size) == (400, 128)
        assert (run.optim["lr"], run.optim["weight_decay"]) == (0.2, 1e-4)
        assert [epoch * 400 for epoch in run.schedule["milestones"]] == [200, 300]
        assert [run.loss[name]["weight"] for name in ("kd", "fitnet", "nst_poly")] == [16, 100, 50]
        assert run.loss["fitnet"]["layers"] == run.loss["nst_poly"]["layers"] == "last_pre_relu"
        assert (run.teacher.model["name"], run.model["name"]) == ("preact_resnet1001", "inception_bn_small")
        assert run.teacher.train.optim["lr"] == 0.1
        assert run.teacher.train.epochs == 200
    run = build.settings(composed("experiment=paper/imagenet", "loss=nst_poly"))
    assert (run.trainer.epochs, run.trainer.batch_size, run.optim["lr"], run.optim["nesterov"]) == (100, 512, 0.1, True)
    assert [round(100 * m) for m in run.schedule["milestones"]] == [30, 60, 90]
    assert run.optim["no_decay"] == ["bias"]
    assert (run.model["input_bn"], run.model["pooling"], run.model["bn_eps"]) == (True, "valid", 2e-5)
    assert run.teacher.model["input_bn"]
    assert (run.data["interpolation"], run.data["antialias"]) == ("bicubic", False)
    assert run.data["mean"] == [0, 0, 0]
