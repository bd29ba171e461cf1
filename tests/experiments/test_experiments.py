"""Every configs/experiment/**/*.yaml composes, builds and takes two steps; headers and tables agree."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from tests.data.samples import encode, noise, write_shard

import nst.config  # noqa: F401  (registers the schema)
from nst import build
from nst.errors import CONFIGS
from nst.teacher import LiveTeacher
from nst.training.ranks import Ranks
from nst.training.trainer import Trainer

FOLDER = CONFIGS / "experiment"
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
TABLES = sorted((CONFIGS / "table").rglob("*.yaml"))
METHODS = {
    "student", "kd", "fitnet", "at", "nst_linear", "nst_poly", "nst_gaussian",
    "kd_fitnet", "kd_at", "kd_nst_poly", "kd_fitnet_nst_poly",
}  # fmt: skip
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
    return {
        "digits": [],
        "cifar100": [f"data.root={cifar100}"],
        "cifar10": [f"data.root={cifar10}"],
        "imagenet": [f"data.root={imagenet}", "data.num_classes=4", "data.size=64", "data.resize=72"],
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
    patch.setattr(build, "_shapes", cache_shapes(build._shapes))
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
    def cached(who: str, model: torch.nn.Module, taps: tuple[str, ...], image: tuple[int, int, int]) -> Any:
        return find(who, model, list(taps), image)

    return lambda who, model, taps, image: cached(who, model, tuple(taps), image)


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize("name", NAMES)
def test_composes_builds_and_takes_two_steps(name, roots):
    data = next((key for key in roots if key in name), "digits")  # cifar100 stands before cifar10
    run = build.settings(composed(f"experiment={name}", *roots[data], "trainer.batch_size=2", "trainer.compile=false"))
    networks, dataset = build.networks(run), cached_data(run, str(roots[data]))
    here = Ranks(0, 1, torch.device("cpu"))
    live = LiveTeacher(networks.teacher, networks.distiller.requests) if networks.teacher is not None else None
    loader = dataset.split("train").loader(2, train=True)
    trainer = Trainer(
        networks.distiller, live or (lambda batch: {}), loader,
        optim=run.optim, settings=run.trainer, ranks=here, seed=0,
    )  # fmt: skip
    for _, batch in zip(range(STEPS), loader.epoch(0), strict=False):
        trainer.step(batch)
    logged = trainer.window()
    networks.distiller.taps.remove()
    if live is not None:
        live.taps.remove()
    assert trainer.progress.step == STEPS
    assert set(logged["terms"]) == set(run.loss)
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
    assert len(text.splitlines()) <= 30
    if not name.endswith("/base"):
        assert re.search(r"published|no cell of a published table|not in the paper's table", text)
        assert re.search(r"^# python (train|scripts/reproduce)\.py ", text, re.M)
        assert "# Expected cost (estimate" in text
    if command := re.search(r"train\.py experiment=(\S+)", text):
        assert command[1] == name


def test_the_paper_s_methods_have_their_names():
    for table in ("cifar10", "cifar100", "imagenet"):
        assert {path.stem for path in (FOLDER / "paper" / table).glob("*.yaml")} == {*METHODS, "base"}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_headers_state_the_figures_of_the_tables(path: Path):
    table = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(table, dict)
    for row in (row for group in table["groups"] for row in group["rows"]):
        experiment = next((o.split("=")[1] for o in row["run"] if o.startswith("experiment=")), None)
        if experiment is not None and "published" in row:
            header = (FOLDER / f"{experiment}.yaml").read_text()
            figure = f"{row['published']:.2f}" + (f" / {row['published_top5']:.2f}" if "published_top5" in row else "")
            assert f"{figure} %" in header.splitlines()[1]
            assert f"{row['label']}: published" in header


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("resnet56-resnet20", ["stage1", "stage2", "stage3"]),
        ("vgg13-vgg8", ["stage1", "stage2", "stage3", "stage4"]),
        ("wrn40_2-wrn16_2", ["stage1_pre_relu", "stage2_pre_relu", "stage3_pre_relu"]),
    ],
)
def test_crd_s_settings(name, taps):
    run = {m: composed(f"experiment=crd/cifar100/{name}/{m}") for m in ("student", "kd", "fitnet", "at", "nst")}
    for cfg in run.values():
        assert (cfg.trainer.epochs, cfg.trainer.batch_size) == (240, 64)
        assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.momentum) == (0.05, 5e-4, 0.9)
        assert list(cfg.optim.milestones) == [150 / 240, 180 / 240, 210 / 240]
        assert cfg.teacher.recipe.trainer.epochs == 240
    assert (run["kd"].loss.ce.weight, run["kd"].loss.kd.weight, run["kd"].loss.kd.temperature) == (0.1, 0.9, 4.0)
    assert (run["at"].loss.at.weight, run["at"].loss.at.p) == (1000, 2)
    assert (run["fitnet"].loss.fitnet.weight, len(run["fitnet"].loss.fitnet.taps)) == (100, 1)
    assert run["nst"].loss.nst_poly.weight == 50
    for method, term in (("at", "at"), ("nst", "nst_poly")):
        node = run[method].loss[term]
        assert node.convention == "crd"
        assert [pair.teacher for pair in node.taps] == [pair.student for pair in node.taps] == taps


def test_the_paper_s_settings():
    for data in ("cifar10", "cifar100"):
        cfg = composed(f"experiment=paper/{data}/kd_fitnet_nst_poly")
        assert (cfg.trainer.epochs, cfg.trainer.batch_size, cfg.optim.lr, cfg.optim.weight_decay) == (
            400,
            128,
            0.2,
            1e-4,
        )
        assert [epoch * 400 for epoch in cfg.optim.milestones] == [200, 300]
        assert (cfg.loss.kd.weight, cfg.loss.fitnet.weight, cfg.loss.nst_poly.weight) == (16, 100, 50)
        assert (cfg.teacher.model.name, cfg.model.name) == ("preact_resnet1001", "inception_bn_small")
    cfg = composed("experiment=paper/imagenet/nst_poly")
    assert (cfg.trainer.epochs, cfg.trainer.batch_size, cfg.optim.lr, cfg.optim.nesterov) == (100, 512, 0.1, True)
    assert [round(100 * m) for m in cfg.optim.milestones] == [30, 60, 90]
    assert cfg.model.input_bn
    assert cfg.teacher.model.input_bn
    assert list(cfg.data.mean) == [0, 0, 0]
