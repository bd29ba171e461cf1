"""The keys of recipes: which run they make, and recipes that choose more than what suits a data set."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Compose

from nst import build
from nst.cli.train import run
from nst.storage.folder import run_folder


def test_patient_composes_and_takes_two_steps(compose: Compose, tiny: list[str]) -> None:
    whole = build.settings(compose("recipe=patient", "data=cifar100", "loss=kd"))
    assert (whole.optim["_target_"], whole.optim["lr"], whole.optim["weight_decay"]) == (
        "torch.optim.AdamW",
        9.4e-4,
        0.01,
    )
    assert whole.schedule["_target_"] == "nst.optim.Cosine"
    assert (whole.trainer.epochs, whole.trainer.mixup, whole.trainer.clip_grad_norm) == (1200, 1.0, 1.0)
    teacher = whole.teacher.train
    assert (teacher.optim["_target_"], teacher.optim["lr"], teacher.epochs) == ("torch.optim.SGD", 0.05, 240)
    loss = ["loss=kd", "loss.ce.weight=0", "loss.kd.weight=1", "loss.kd.temperature=1"]
    summary = run(compose(*tiny, "recipe=patient", *loss, "data.limit=32", "trainer.epochs=1"))
    assert summary["steps"] == 2
    assert summary["config"]["trainer"]["mixup"] == 1.0


def test_a_key_given_by_hand_wins_over_the_recipe(compose: Compose) -> None:
    settings = build.settings(compose("recipe=patient", "optim.lr=1e-4", "trainer=quick", "trainer.mixup=0.2"))
    assert (settings.optim["lr"], settings.trainer.epochs, settings.trainer.mixup) == (1e-4, 2, 0.2)


def test_networks_drop_paths_by_an_argument_of_their_own(compose: Compose, tiny: list[str]) -> None:
    """What is dropped is drawn from (seed, step), so that a run repeats itself."""
    pytest.importorskip("timm")
    vit = [
        "model=timm",
        "model.arch=vit_tiny_patch16_224",
        "model.arguments={depth: 2, patch_size: 4, drop_path_rate: 0.5}",
    ]
    kept = []
    for outputs in ("one", "two"):
        summary = run(compose(*tiny, *vit, "loss=ce", f"outputs={compose().outputs}/{outputs}"))
        kept.append(load_file(Path(summary["folder"]) / "student.safetensors"))
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    plain = run(compose(*tiny, *vit[:2], "model.arguments={depth: 2, patch_size: 4}", "loss=ce"))
    assert plain["last"]["loss"] != summary["last"]["loss"]


KEYS = {
    "trainer.ema": ("null", "0.9"),
    "trainer.mixup": ("0.0", "1.0"),
    "trainer.cutmix": ("0.0", "1.0"),
    "loss.ce.label_smoothing": ("0.0", "0.1"),
    "teacher.precision": ("fp32", "bf16"),
    "data.augment": ("null", "trivial"),
    "data.erase": ("0.0", "0.25"),
}
"""What is off, and what is on."""


def test_each_key_is_part_of_a_run_and_at_its_default_renames_none(compose: Compose) -> None:
    folder = ["data=folder", "data.root=photographs", "data.num_classes=10", "loss=kd"]

    def name(*overrides: str) -> Path:
        return run_folder(asdict(build.settings(compose(*folder, *overrides))))

    assert name(*(f"{key}={off}" for key, (off, _) in KEYS.items())) == name()
    assert len({name(f"{key}={on}") for key, (_, on) in KEYS.items()} | {name()}) == len(KEYS) + 1
    before = asdict(build.settings(compose(*folder)))
    for key in KEYS:  # as an earlier version wrote it
        *parents, last = key.split(".")
        node = before
        for parent in parents:
            node = node[parent]
        del node[last]
    assert run_folder(before) == name()
