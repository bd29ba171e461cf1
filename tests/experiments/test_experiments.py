"""Every setting of configs/experiment composes with all methods of its tables as one sum, which is built and takes a step."""

from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

import nst.config  # noqa: F401  (registers the schema)
from nst import build
from nst.config import CONFIGS
from nst.data.memory import MemorySplit, ViewScheme
from nst.loop import Training
from nst.tables.file import read_table
from nst.teacher import LiveTeacher, Teacher

GROUPS: dict[str, list[str]] = {}
"""Of every group of every table the overrides of all its rows at once, their losses as one sum; of one key twice the last counts."""
for name in sorted(str(f.relative_to(CONFIGS / "table").with_suffix("")) for f in (CONFIGS / "table").rglob("*.yaml")):
    for group in (table := read_table(name)).groups:
        words = [*table.overrides, *(word for row in group.rows for word in row.overrides)]
        losses = ",".join(word.removeprefix("loss=").strip("[]") for word in words if word.startswith("loss="))
        others = [word for word in words if not word.startswith("loss=")]
        GROUPS[f"{name} {group.name}"] = [*others, f"loss=[{','.join(dict.fromkeys(losses.split(',')))}]"]


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return build.settings(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("group", GROUPS)
def test_composes_builds_and_takes_a_step(group):
    small = ["data.root=nowhere", "trainer.batch_size=2", "trainer.compile=false", "trainer.clip_grad_norm=1"]
    run = composed(*dict.fromkeys(GROUPS[group]), *small, *(["data.limit=null"] if "cifar" in group else []))
    if run.data["size"] > 64:
        run.data["size"] = 160  # the least of which WKD-F can cut the last map into 4 × 4 cells
    networks, size, channels = build.networks(run), run.data["size"], run.data["channels"]
    pixels, labels = torch.randint(0, 256, (8, channels, size, size), dtype=torch.uint8), torch.arange(8)
    labels %= run.data["num_classes"]
    images = MemorySplit(pixels, labels, ViewScheme(size, 1, False), (0.5,) * channels, (0.25,) * channels)
    assert networks.teacher is not None
    for norm in (m for m in networks.teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0  # the statistics of some noise: in `eval()` 333 untrained residual blocks overflow
    with torch.no_grad():
        networks.teacher.train()(torch.randn(2, channels, 32, 32))
    networks.distiller.init_memory(len(images))
    for loss in networks.distiller.losses.values():
        if loss.teacher_layer is not None:
            loss.init_teacher(torch.eye(run.data["num_classes"]))
    teacher = Teacher([LiveTeacher(networks.teacher, networks.distiller.target_specs)])
    loader = images.loader(2, train=True)
    training = Training(networks.distiller, loader, **build.optimization(run), settings=run.trainer)
    training.step(*next(iter(teacher.targets(loader.epoch(0)))))
    logged = training.means()
    assert set(logged["terms"]) == {name for name, node in run.loss.items() if node["weight"]}
    assert all(np.isfinite(value) for value in logged["terms"].values())


def test_every_setting_stands_in_a_table():
    folder = CONFIGS / "experiment"
    names = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml") if path.stem != "base")
    assert {f"experiment={name}" for name in names} <= {word for words in GROUPS.values() for word in words}


def test_the_published_settings():
    def recipe(run: Any) -> tuple[float, ...]:
        return run.trainer.epochs, run.trainer.batch_size, run.optim["lr"], run.optim["weight_decay"]

    run = composed("experiment=crd/resnet56-resnet20", "loss=crd/kd")
    assert recipe(run) == (240, 64, 0.05, 5e-4)
    assert (run.teacher.train.epochs, run.schedule["milestones"][0]) == (240, 150 / 240)
    assert composed("experiment=crd/vgg13-mobilenet_v2_half", "loss=crd/kd").optim["lr"] == 0.01  # of other families
    run = composed("experiment=paper/cifar100", "loss=kd_fitnet_nst_poly")
    assert recipe(run) == (400, 128, 0.2, 1e-4)
    assert [epoch * 400 for epoch in run.schedule["milestones"]] == [200, 300]
    assert [run.loss[name]["weight"] for name in ("kd", "fitnet", "nst_poly")] == [16, 100, 50]
    assert run.loss["fitnet"]["layers"] == run.loss["nst_poly"]["layers"] == "last_pre_relu"
    run = composed("experiment=paper/imagenet", "loss=nst_poly")
    assert (*recipe(run)[:3], run.optim["nesterov"]) == (100, 512, 0.1, True)
    assert (run.data["interpolation"], run.data["antialias"], run.optim["no_decay"]) == ("bicubic", False, ["bias"])
