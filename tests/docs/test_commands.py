"""Every command in README.md and docs/*.md: run with shrunken settings, or composed and dry-run, or named below."""

import re
from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
import torch
from blocks import PAGES, Command, blocks, commands
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from nst import build
from nst.cli.compose import composed, hydra_arguments
from nst.cli.main import command
from nst.cli.train import run
from nst.config import PredictConfig
from nst.models import resnet14, resnet20
from nst.models.weights import save_weights
from nst.tables.command import parse

NOT_RUN = {
    r"(python3|python) -m venv |source |(\S*/)?pip install ": "changes the environment",
    r"tensorboard ": "a server that does not end",
    r"(\S*/)?python -m pytest": "these tests",
}
SHRUNKEN = (
    "trainer.epochs=1", "trainer.batch_size=16", "data.limit=40",
    "teacher.min_accuracy=0", "teacher.train.epochs=1", "teacher.train.batch_size=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shrunken runs go, so that they share teachers."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that pages describe, each page in a folder of its own, and the weights that one names: of training code, and of ours."""
    folder = tmp_path_factory.mktemp("own")
    for page in PAGES:
        for block in blocks(page, "python", "yaml"):
            if block.file is not None:
                path = folder / page.stem / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
    (folder / "teachers" / "RUN").mkdir(parents=True)
    for name, make in (("a", resnet20), ("b", resnet14), ("RUN/student", resnet20)):
        save_weights(folder / "teachers" / f"{name}.safetensors", make(10, in_channels=1))
    state = {f"module.{key}": value for key, value in resnet20(10, in_channels=1).state_dict().items()}
    average = {f"_orig_mod.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, "state_dict": state, "state_dict_ema": average}, folder / "teachers" / "mine.pth")
    return folder


@pytest.mark.parametrize("typed", [*commands()], ids=str)
def test_command(typed: Command, outputs: Path, own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if reasons := [reason for pattern, reason in NOT_RUN.items() if re.match(pattern, typed.text)]:
        pytest.skip(reasons[0])
    words, several = list(typed.words), False
    if "torchrun" in words[:2]:  # started with several processes in tests/distributed; here composed
        several, words = True, ["python", *(word for word in words[words.index("torchrun") + 1 :] if word[:2] != "--")]
    if words[1:3] == ["-m", "nst"]:
        words = words[2:]
    if words[0] == "nst":
        name, arguments = words[1], words[2:]
    else:
        name, arguments = Path(words[1]).stem, words[2:]  # python train.py
    page = own / Path(typed.page).stem
    monkeypatch.chdir(page if page.is_dir() else tmp_path)  # the page's own folder has the files it describes
    if name == "train":
        check_train(arguments, outputs, several)
    elif name in ("cache", "gradients", "layers"):
        build.settings(composed(overrides_of([word for word in arguments if not word.startswith("all=")])))
    elif name in ("evaluate", "export"):
        composed(overrides_of(arguments, name), name)
    elif name == "runs":
        command(name, [*arguments, f"outputs={outputs}"])
    elif name == "predict":
        assert {word.partition("=")[0] for word in arguments} <= {field.name for field in fields(PredictConfig)}
    elif name == "reproduce" and arguments:
        parse(arguments)
    elif name != "reproduce":
        raise AssertionError(f"{typed}: say in tests/docs/test_commands.py how this is checked")


def overrides_of(arguments: list[str], config_name: str = "config") -> list[str]:
    """The overrides among the words of a Hydra command, whose options stand in front of them."""
    return [word for word in hydra_arguments(arguments, config_name) if "=" in word and not word.startswith("-")]


def check_train(arguments: list[str], outputs: Path, several: bool) -> None:
    """One job: run, on embedded or invented data; a sweep's jobs, and jobs on other data, are composed and built."""
    overrides = [f"outputs={outputs}", *overrides_of(arguments)]
    if {"-m", "--multirun"} & set(arguments):
        own_keys = [word for word in overrides if word.startswith(("hydra", "+hydra"))]
        parsed = OverridesParser.create().parse_overrides([word for word in overrides if word not in own_keys])
        for job in product(*map(values, parsed)):
            build.settings(composed(list(job)))
        return
    settings = build.settings(composed(overrides))
    elsewhere = settings.data["_target_"].startswith(("nst.data.dataset.Cifar", "nst.data.dataset.Images"))
    if not (elsewhere or several or "--help" in arguments):
        run(composed([*overrides, *SHRUNKEN]))
    elif settings.data["name"] != "imagenet":  # the networks of the ImageNet runs are built in tests/experiments
        settings.model = build.without_weights(settings.model)
        if settings.teacher.model is not None:
            settings.teacher.model = build.without_download(settings.teacher.model)
        build.networks(settings)


def values(override: Override) -> list[str]:
    """What a sweep makes of an override, but of an interval its start alone, of seeds the first: they differ in nothing else."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    value, key = override.value(), override.key_or_group
    found = [value.start] if isinstance(value, IntervalSweep) else [*override.sweep_string_iterator()]
    return [f"{key}={one}" for one in (found[:1] if key == "seed" else found)]
