"""The command line of `nst reproduce`."""

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from shlex import quote

from nst.config import UNNAMED, RunConfig
from nst.reproduce.table import result_name

USAGE = """Reproduce a table: plan its runs, run what is missing, write tables and one page.

  nst reproduce table=NAME [seeds=N] [epochs=FRACTION] [plan=true | page=true] [outputs=FOLDER] [key=value ...]

  table=paper/cifar10   or paper/cifar100, paper/imagenet, crd/cifar100, quick/digits, quick/cifar10,
                        quick/cifar10_5000, conventions/digits, conventions/cifar10, zoo/cifar10, study/images
  table=mine            a table of your own in ./configs/table/mine.yaml, or table=path/to/mine.yaml
  seeds=3               students of every method: seeds 0, 1, 2 (the teacher is one network, trained or given once)
  epochs=0.1            a tenth of every run's epochs, the teacher's included: the result is labelled reduced
  plan=true             show the plan and the time estimate, run nothing
  page=true             write the result of the finished runs, run nothing
  key=value             any override of `nst train`, for every run: data.root=FOLDER data.limit=2000 teacher.weights=FILE

The same command again continues an interrupted table. Started several times at once, on all GPUs or machines that see the
outputs folder, each process takes runs that no other has."""


KEYS = ("table", "seeds", "epochs", "plan", "page", "outputs")
_RUN_KEYS = {field.name for field in fields(RunConfig)}  # of one run: `optim=adamw` is no misspelt key of a table


@dataclass(frozen=True)
class Request:
    """A table, with the arguments of the command line."""

    table: str
    seeds: int | None = None  # None: the table's own
    epochs: float = 1.0  # fraction of each run's length
    plan: bool = False
    page: bool = False
    outputs: str = "outputs"
    overrides: tuple[str, ...] = ()  # of every run

    @property
    def folder(self) -> str:
        """The folder of the result below `<outputs>/tables`: named by the arguments, except for the number of seeds."""
        parts = [f"epochs={self.epochs:g}"] if self.epochs != 1 else []
        parts += sorted(o for o in self.overrides if o.split("=")[0] not in UNNAMED)
        parts = [re.sub(r"=.*/", "=", text) for text in parts]  # only the last component of a path
        name = ",".join(re.sub(r"[^\w.=+-]+", "-", text) for text in parts)
        if len(name) > 120:  # file systems have limits
            name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return f"{result_name(self.table)}/{name or 'full'}"

    @property
    def command(self) -> str:
        """The command line of this request."""
        arguments = [f"table={self.table}", *([f"seeds={self.seeds}"] if self.seeds else [])]
        arguments += [f"epochs={self.epochs:g}"] if self.epochs != 1 else []
        return " ".join(["nst reproduce", *map(quote, [*arguments, *self.overrides])])


def parse(arguments: Sequence[str]) -> Request:
    """Read `key=value` arguments.

    Raises:
        ValueError: an argument that is no `key=value`, or a value out of range.
    """
    settings: dict[str, str] = {}
    overrides: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r}: key=value is needed\n\n{USAGE}")
        if key == "seed":
            raise ValueError(f"{argument}: a table runs seeds 0 to N-1; pass seeds=N")
        if key in KEYS:
            settings[key] = value
        elif key not in _RUN_KEYS and (nearest := difflib.get_close_matches(key, KEYS, n=1, cutoff=0.7)):
            raise ValueError(f"{argument}: unknown key; did you mean {nearest[0]}?")
        else:
            overrides.append(argument)
    if "table" not in settings:
        raise ValueError(f"which table? table=quick/digits for example\n\n{USAGE}")
    result_name(settings["table"])
    seeds, epochs = settings.get("seeds"), settings.get("epochs", "1")
    if seeds is not None and (not seeds.isdecimal() or int(seeds) < 1):
        raise ValueError(f"seeds={seeds}: how many seeds, a whole number from 1, is needed")
    if not re.fullmatch(r"\d*\.?\d+", epochs) or not 0 < float(epochs) <= 1:
        raise ValueError(
            f"epochs={epochs}: a fraction of each run's length, above 0 and up to 1, is needed; "
            "trainer.epochs=N sets a number for the students"
        )
    for key in ("plan", "page"):
        if settings.get(key, "false") not in ("true", "false"):
            raise ValueError(f"{key}={settings[key]}: true or false is needed")
    if settings.get("plan") == settings.get("page") == "true":
        raise ValueError("plan=true page=true: one of them is needed")
    return Request(
        settings["table"],
        int(seeds) if seeds else None,
        float(epochs),
        settings.get("plan") == "true",
        settings.get("page") == "true",
        settings.get("outputs", "outputs"),
        tuple(overrides),
    )
