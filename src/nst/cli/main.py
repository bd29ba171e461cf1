"""The command line: `nst COMMAND [arguments]`, and the commands that hand over to the rest of the package."""

import csv
import inspect
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from nst.cli.compose import hydra_main, nearest, readable_errors, use_working_directory
from nst.config import EvaluateConfig, ExportConfig, PredictConfig, check_ranges, documented

COMMANDS = {
    "train": "train a student, from a teacher or without one",
    "evaluate": "measure the accuracy of a finished run, or of any weights on any data set",
    "predict": "classify the images of a folder with a trained student",
    "reproduce": "run a table of results and write its page",
    "runs": "list the runs so far",
    "layers": "list the layers of teacher and student that can be compared",
    "gradients": "compare the gradients of the terms of a loss",
    "cache": "write the teacher cache without training, or check it",
    "export": "write a trained student as files to deploy, with a model card",
    "new": "start a project of your own in a new folder",
}
COMPOSED = ("train", "evaluate", "layers", "gradients", "cache", "export")  # arguments are a Hydra configuration
SCHEMAS = {"evaluate": EvaluateConfig, "export": ExportConfig, "predict": PredictConfig}
OWN_HELP = ("train", "reproduce")
TEMPLATE = Path(__file__).parent / "template"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; without arguments list the commands."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; see docs/cost.md
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("Knowledge distillation of vision networks.\n")
        print("\n".join(f"  nst {name.ljust(9)}  {text}" for name, text in COMMANDS.items()))
        print("\nnst COMMAND --help explains one.")
    elif arguments[0] in ("-sc", "--shell-completion"):
        complete(arguments)
    elif arguments[0] == "--version":
        from nst import __version__

        print(__version__)
    elif arguments[0] in COMMANDS:
        command(arguments[0], arguments[1:])
    else:
        typed = "=" in arguments[0]
        hint = f"did you mean nst train {arguments[0]}?" if typed else nearest(arguments[0], COMMANDS)
        print(f"error: nst {arguments[0]}: no such command; {hint}", file=sys.stderr)
        sys.exit(2)


def command(name: str, arguments: Sequence[str]) -> None:
    """Run one command, a function of its name here or in a module of its name. `--help` prints its docstring and its keys."""
    function = globals().get(name) or getattr(import_module(f"nst.cli.{name}"), name)
    if name in OWN_HELP or not {"-h", "--help", "help"} & {*arguments}:
        function(list(arguments))
        return
    print(inspect.getdoc(function))
    if schema := SCHEMAS.get(name):
        print()
        about = documented(schema)
        for field in fields(schema):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            value = "…" if default in (None, "???") else default if isinstance(default, str) else json.dumps(default)
            print(f"  {field.name}={value}".ljust(22), about[field.name][1])


def complete(arguments: Sequence[str]) -> None:
    """Hydra's completion by the shell, `eval "$(nst -sc install=bash)"`, for several commands: their names first."""
    typed = os.environ.get("COMP_LINE", "").split(" ")
    if not any(argument.startswith("query=") for argument in arguments):
        command("train", arguments)
    elif len(typed) <= 2:
        print(" ".join(COMMANDS))
    elif typed[1] in COMPOSED:
        os.environ["COMP_LINE"] = " ".join([typed[0], *typed[2:]])
        command(typed[1], arguments)


def evaluate(arguments: Sequence[str]) -> None:
    """Measure the accuracy of a finished run's student, or of any weights on any data set.

    nst evaluate run=outputs/digits/resnet20-resnet8/nst_poly/seed0-1a2b3c4d
    nst evaluate model=resnet56 weights=resnet56.safetensors data=cifar10 data.root=FOLDER
    """

    def task(cfg: DictConfig) -> None:
        from nst.finished import evaluate_weights

        evaluate_weights(cast(EvaluateConfig, OmegaConf.to_object(cfg)))

    def check_first(cfg: DictConfig) -> None:
        if cfg.run is None and None in (cfg.weights, cfg.model, cfg.data):
            raise ValueError("`run` or `weights` is required: pass run=FOLDER, or model=… weights=FILE data=…")
        if cfg.run is not None and (cfg.model is not None or cfg.weights not in (None, "last", "best")):
            raise ValueError(f"run={cfg.run} has its own model and weights; remove model=… and weights=FILE")
        if cfg.root is not None and (cfg.run is None or cfg.data is not None):
            raise ValueError(f"root={cfg.root} is for the run's own data; of other data pass data.root={cfg.root}")

    hydra_main(task, "evaluate", arguments, check_first)


def export(arguments: Sequence[str]) -> None:
    """Write a finished run's student as files to deploy, verified, with a model card.

    nst export run=outputs/digits/resnet20-resnet8/nst_poly/seed0-1a2b3c4d
    """

    def task(cfg: DictConfig) -> None:
        from nst.export import export

        export(cast(ExportConfig, OmegaConf.to_object(cfg)))

    hydra_main(task, "export", arguments)


def cache(arguments: Sequence[str]) -> None:
    """Write the teacher cache without training, or check a complete one.

    nst cache data=cifar10 data.root=FOLDER teacher=resnet56 teacher.weights=FILE 'loss=[kd,at,nst_poly]' cache.views=16

    The arguments are those of `nst train`. Student and losses determine what is cached, and every run with the same `cache`
    settings uses it. If it is stopped, the same command continues. At the end every row is compared with its checksum.
    """

    def task(cfg: DictConfig) -> None:
        from nst import build
        from nst.dist import join
        from nst.run import write_teacher_cache

        cfg.cache.views = cfg.cache.views or 16
        settings = build.settings(cfg)
        with join(settings.trainer.device, settings.trainer.timeout) as group:
            written = write_teacher_cache(settings, group).cache
            if group.main and written is not None:
                print(f"{written.folder}: checksums match\n{written.check()}")

    hydra_main(task, "config", arguments)


def predict(arguments: Sequence[str]) -> None:
    """Classify the images of a folder, or one image, with a trained student.

    nst predict model=FOLDER images=FOLDER

    Probabilities are a softmax of the logits, not calibrated. Each image is resized, cropped and normalised as in the run's evaluation.
    """
    with readable_errors("predict") as end:
        given = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PredictConfig), given))
        check_ranges(settings, "")
        use_working_directory()
        end.status = 1
        from nst.export.inference import classifier, image_files, predict

        files = image_files(Path(settings.images).expanduser())
        student = classifier(Path(settings.model).expanduser(), settings.device)
        writer = csv.writer(sys.stdout, lineterminator="\n")
        if settings.format == "csv":
            writer.writerow(["image", "rank", "class", "probability"])
        for file, likely in predict(student, files, settings.top, settings.batch_size, settings.device):
            if settings.format == "csv":
                writer.writerows([file.name, i, name, f"{p:.6f}"] for i, (name, p) in enumerate(likely, start=1))
            else:
                classes = [{"class": name, "probability": value} for name, value in likely]
                print(json.dumps({"image": file.name, "classes": classes}))


def reproduce(arguments: Sequence[str]) -> None:
    """Plan a table, run what is missing, report; without arguments the usage."""
    from nst.tables.command import USAGE, parse, reproduce

    if not arguments or {"-h", "--help", "help"} & {*arguments}:
        print(USAGE)
        return
    with readable_errors() as end:
        request = parse(arguments)
        end.status = 1
        reproduce(request)


def runs(arguments: Sequence[str]) -> None:
    """List runs, by data set, teacher and student: their differences, and mean ± std (n) and median over seeds.

    nst runs [field=value ...] [each=true] [sort=FIELD] [format=table|json|csv] [outputs=FOLDER]

    fields: data teacher model loss seed epochs state last best best_epoch collapsed seconds folder
    values: several separated by commas; * matches anything: 'loss=*nst*,kd' seed=0 state=finished
    last:   top-1 on the test images; of a run that is not finished, on the images of its evaluations
    each:   true lists single runs, with their folders
    sort:   last (default), best: highest first; other fields: lowest first
    """
    with readable_errors():
        from nst.tables.listing import list_runs

        list_runs(arguments)


def new(arguments: Sequence[str]) -> None:
    """Start a project of your own: `nst new NAME` writes a folder with a network, images, a loss, an experiment and a test.

    It runs as it is: `cd NAME && nst train experiment=first`.
    """
    with readable_errors():
        if len(arguments) != 1 or "=" in arguments[0]:
            raise ValueError("nst new NAME: one word is needed, the folder of the new project")
        folder = Path(arguments[0]).expanduser()
        if folder.exists():
            raise ValueError(f"{folder} exists already; choose another folder")
        shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        print(f"written: {folder}\nnext: cd {folder} && nst train experiment=first")
