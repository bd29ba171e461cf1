"""Every command in README.md and docs/*.md: run with shrunken settings, or composed and dry-run, or named below."""

import argparse
import importlib
import re
import runpy
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import PAGES, ROOT, Command, blocks, commands
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from nst import build
from nst.cli.compose import composed, hydra_arguments
from nst.cli.main import COMMANDS, command
from nst.cli.train import run
from nst.config import PredictConfig
from nst.models import resnet14, resnet20
from nst.models.weights import save_weights
from nst.tables.command import parse

NOT_RUN = {
    r"(python3|python) -m venv |source |(\S*/)?pip install ": "changes the environment",
    r"git clone |cd |mkdir ": "changes the working folder",
    r"tensorboard ": "a server that does not end",
    r"(\S*/)?python -m pytest": "these tests",
    r"kill ": "names a process",
    r"bash \.ci/": "installs the package and runs these tests",
    r"(ruff|pyright|pre-commit) ": "checks of the source, run beside the tests",
}
SHRUNKEN = (
    "trainer.epochs=1", "trainer.batch_size=16", "trainer.heatmaps=false", "data.limit=40",
    "teacher.min_accuracy=0", "teacher.train.epochs=1", "teacher.train.batch_size=16",
)  # fmt: skip


class Parsed(Exception):
    """A command line was understood; the work itself is left out."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shrunken runs go, so that they share teachers."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that pages describe, each page in a folder of its own."""
    folder = tmp_path_factory.mktemp("own")
    for page in PAGES:
        for block in blocks(page, "python", "yaml"):
            if block.file is not None:
                path = folder / page.stem / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
    write_weights(folder / "teachers")
    return folder


def write_weights(folder: Path) -> None:
    """The weights files that a page names, with random weights: one as training code leaves it, with its average, others of ours."""
    (folder / "RUN").mkdir(parents=True)
    networks = {
        name: make(10, in_channels=1) for name, make in (("a", resnet20), ("b", resnet14), ("RUN/student", resnet20))
    }
    for name, network in networks.items():
        save_weights(folder / f"{name}.safetensors", network)
    state = networks["a"].state_dict()
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save(
        {"epoch": 3, "state_dict": wrapped, "state_dict_ema": {f"_orig_mod.{k}": v for k, v in wrapped.items()}},
        folder / "mine.pth",
    )


@pytest.mark.parametrize("typed", [*commands()], ids=str)
def test_command(typed: Command, outputs: Path, own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    if any(re.match(pattern, typed.text) for pattern in NOT_RUN):
        pytest.skip(next(reason for pattern, reason in NOT_RUN.items() if re.match(pattern, typed.text)))
    words, several = list(typed.words), False
    if "torchrun" in words[:2]:  # started with several processes in tests/distributed; here composed
        several, words = True, ["python", *(word for word in words[words.index("torchrun") + 1 :] if word[:2] != "--")]
    if words[1:3] == ["-m", "nst"]:
        words = words[2:]
    if words[0] == "nst":
        name, arguments = words[1], words[2:]
    else:
        script = next((Path(word) for word in words[:2] if word.endswith(".py")), None)
        assert script is not None, f"{typed}: say in tests/docs/test_commands.py how this is checked"
        name, arguments = script.stem, words[words.index(str(script)) + 1 :]
    page = own / Path(typed.page).stem
    if page.is_dir():
        monkeypatch.chdir(page)  # the page's own folder, with the files it describes
    if name == "train":
        check_train(arguments, outputs, several=several)
    elif name in COMMANDS:
        check_command(name, arguments, outputs, monkeypatch)
    else:
        check_script(ROOT / "scripts" / f"{name}.py", arguments, monkeypatch)


def overrides_of(arguments: list[str], config_name: str = "config") -> list[str]:
    """The overrides among the words of a Hydra command, whose options stand in front of them."""
    return [word for word in hydra_arguments(arguments, config_name) if "=" in word and not word.startswith("-")]


def check_train(arguments: list[str], outputs: Path, *, several: bool) -> None:
    """One job: run, on embedded or invented data; a sweep's jobs, and jobs on other data, are composed and built."""
    overrides = [f"outputs={outputs}", *overrides_of(arguments)]
    if {"-m", "--multirun"} & set(arguments):
        own_keys = [word for word in overrides if word.startswith(("hydra", "+hydra"))]
        parsed = OverridesParser.create().parse_overrides([word for word in overrides if word not in own_keys])
        searched = any(word.startswith("hydra/sweeper=") for word in own_keys)
        jobs = [first_values(parsed)] if searched else BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
        for job in (job for job in jobs if not {"seed=1", "seed=2"} & {*job}):  # seeds differ in nothing else
            build.settings(composed(list(job)))
        return
    settings = build.settings(composed(overrides))
    if (
        settings.data["_target_"].startswith(("nst.data.dataset.Cifar", "nst.data.dataset.Images"))
        or several
        or "--help" in arguments
    ):
        settings.model = build.without_weights(settings.model)
        if settings.teacher.model is not None:
            settings.teacher.model = build.without_download(settings.teacher.model)
        if settings.data["name"] != "imagenet":  # the networks of the ImageNet runs are built in tests/experiments
            build.networks(settings)
        return
    run(composed([*overrides, *SHRUNKEN]))


def first_values(parsed: list[Override]) -> list[str]:
    """One job of a search: of each choice the first value, of each interval its start."""
    job = []
    for override in parsed:
        value = override.value()
        if isinstance(value, IntervalSweep):
            job.append(f"{override.key_or_group}={value.start}")
        elif override.is_sweep_override():
            job.append(f"{override.key_or_group}={next(iter(override.sweep_string_iterator()))}")
        else:
            job.append(override.input_line or "")
    return job


def check_command(name: str, arguments: list[str], outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command other than training: its words are composed or parsed, by whatever it does that with."""
    if name in ("cache", "gradients", "layers"):
        build.settings(composed(overrides_of([word for word in arguments if not word.startswith("all=")])))
    elif name in ("evaluate", "export"):
        composed(overrides_of(arguments, name), name)
    elif name == "benchmark":
        parse_only(monkeypatch)
        with pytest.raises(Parsed):
            command(name, arguments)
    elif name == "runs":
        command(name, [*arguments, f"outputs={outputs}"])
    elif name == "predict":
        assert {word.partition("=")[0] for word in arguments} <= {field.name for field in fields(PredictConfig)}
    elif arguments:
        parse(arguments)


def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let argparse read a command line and go no further."""
    parse = argparse.ArgumentParser.parse_args

    def and_stop(parser: argparse.ArgumentParser, words: Any = None, *_: Any) -> None:
        parse(parser, words)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", and_stop)


def check_script(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script of scripts/ that is no command."""
    if "argparse" in script.read_text():
        parse_only(monkeypatch)
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")
    elif script.name == "results.py":
        module = importlib.import_module("scripts.results")
        monkeypatch.setattr(module, "PAGES", ())  # the project's own are left as they are
        Path("results").mkdir()  # in this test's own folder
        module.main(arguments)
    else:
        assert script.name == "configuration.py", "say in tests/docs/test_commands.py how this is checked"
