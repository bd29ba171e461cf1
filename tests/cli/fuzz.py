"""Command lines that nobody should type, by the hundred: each gives a clear error before any work, or runs.

python -m tests.cli.fuzz [--only TEXT] [--seed 0] [--cases 250]

Made from the schema (every key with values of wrong types, ranges and sizes), from the groups, and from a list of odd words.
Each line is a forked child in an empty folder. A traceback, a child of more than 30 s, and a run that ends well with a value that
cannot be right are failures, printed with their output.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nst.config import CONFIGS, RunConfig

SECONDS = 30  # that a line may take
TINY = (
    "teacher=none", "loss=ce", "data.limit=20", "trainer.epochs=1", "trainer.batch_size=20", "trainer.heatmaps=false",
    "trainer.compile=false", "tracker=[]",
)  # fmt: skip
DRY = ("dry_run=true",)

NO_NUMBER = ("abc", "[1]", "{a:1}", "''", "true,", "日本", "1e", "--1", "0x")
NOT_FINITE = ("nan", "inf", "-inf", "1e400")
HUGE = ("99999999999999999999", "-99999999999999999999")

# Words beside the schema: True where the line must be refused, False where it must run, None where either will do.
ODD: tuple[tuple[bool | None, tuple[str, ...]], ...] = (
    (True, ("train", "=")), (True, ("train", "+")), (True, ("train", "~")), (True, ("train", "")), (True, ("train", " ")),
    (True, ("train", "seed")), (True, ("train", "seed==1")), (True, ("train", "+seed=1", "+seed=2")),
    (True, ("train", "seed=1,2")), (True, ("train", "seed=")), (True, ("train", "++nothing=1")), (True, ("train", "~nothing")),
    (True, ("train", "~data")), (True, ("train", "~model")), (True, ("train", "~loss")), (True, ("train", "~optim")),
    (True, ("train", "~schedule")), (None, ("train", "~tracker", *DRY)), (None, ("train", "~teacher")),
    (True, ("train", "model=null")), (True, ("train", "data=null")), (True, ("train", "loss=null")), (True, ("train", "loss=[]")),
    (True, ("train", "optim=null")), (True, ("train", "schedule=null")), (False, ("train", "tracker=[]", *DRY)),
    (False, ("train", "teacher=null", "loss=ce", *DRY)), (True, ("train", "teacher=null")),
    (True, ("train", "model=[resnet8,resnet14]")), (True, ("train", "data=[digits,cifar10]")), (True, ("train", "model=../model/resnet8x")),
    (True, ("train", "model=/etc/passwd")), (True, ("train", "loss=[kd")), (True, ("train", "loss=kd]")), (True, ("train", "loss={kd")),
    (True, ("train", "layers=[{teacher:last}]")), (True, ("train", "layers=[]")), (True, ("train", "layers=null")), (True, ("train", "layers=7")),
    (True, ("train", "layers=nowhere", *DRY)), (True, ("train", "layers=[{teacher:last,student:last,weight:-1}]", *DRY)),
    (True, ("train", "layers=[{teacher:last,student:last,weight:nan}]", *DRY)), (True, ("train", "layers=[{teacher:'',student:last}]", *DRY)),
    (True, ("train", "loss=[kd,kdd]")), (True, ("train", "loss.kd.weight=1")), (True, ("train", "+loss.x=3")), (True, ("train", "+loss.x={}")),
    (True, ("train", "loss.nst_poly=null")), (True, ("train", "loss.nst_poly._target_=os.system")), (True, ("train", "loss.nst_poly._target_=''")),
    (True, ("train", "loss.nst_poly.weight=0", "loss.ce.weight=0")), (True, ("train", "model._target_=os.getcwd")),
    (True, ("train", "model._target_=nowhere.Net")), (True, ("train", "data._target_=nowhere.load", *TINY)),
    (True, ("train", "optim._target_=torch.nn.Linear")), (True, ("train", "schedule._target_=print")), (True, ("train", "+tracker.x=1")),
    (True, ("train", "+tracker.x._target_=print", *DRY)), (True, ("train", "teacher.weights=nowhere.pt", "loss=kd", "data.limit=20")),
    (True, ("train", "teacher.weights=.", "loss=kd", "data.limit=20")), (True, ("train", "data=cifar10", "data.root=nowhere", *TINY[:2])),
    (True, ("train", "data=folder", "data.root=nowhere", "data.num_classes=3", *TINY[:2])), (True, ("train", "data=folder")),
    (True, ("train", "cache.views=-1")), (True, ("train", "cache.views=many")), (True, ("train", "cache.dtype=float32")),
    (True, ("train", "knowledge=stored")), (True, ("train", "knowledge.views=4")), (True, ("train", "teacher.recipe.trainer.epochs=1")),
    (True, ("train", "loss.nst_poly.taps=last")), (True, ("export", "run=x", "allow=[a.B]")),
    (False, ("train", "outputs=a=b (1) [2] {3} ü's", *TINY)), (False, ("train", "data.root=/my folder/x", *DRY)),
    (True, ("train", "teacher.weights=epoch=6 (best).pt", "loss=kd", "data.limit=20")), (False, ("train", "loss=[kd,", "at]", *DRY)),
    (True, ("train", "experiment=nowhere")),
    (True, ("train", "experiment=crd")), (True, ("train", "hydra/launcher=nowhere", "-m", "seed=1,2")), (True, ("train", "--nothing")),
    (True, ("train", "-x")), (True, ("train", "--config-dir")), (True, ("train", "--config-dir", "nowhere")),
    (True, ("train", "--config-name", "nowhere")), (None, ("train", "--cfg")), (None, ("train", "--cfg", "all")), (True, ("train", "-1")),
    (True, ("train", "outputs=/dev/null/x", *TINY)), (None, ("train", "outputs=''", *DRY)), (False, ("train", "outputs=日本 ü", *TINY)),
    (True, ("train", "seed=${seed}")), (True, ("train", "seed=${nothing}")), (True, ("train", "outputs=${oc.env:NOT_SET}")), (True, ("train", "seed=???")),
    (True, ("train", "model.name='a b'", *DRY)), (True, ("train", "model.name=../up", *DRY)), (True, ("train", "data.name=''", *DRY)),
    (True, ("train", "+model.nothing=1", *DRY)), (True, ("train", "model.num_classes=3", *DRY)), (True, ("train", "-m", "seed=1,x", *DRY)),
    (False, ("train", "-m", "seed=1,2", *DRY)), (False, ("train", "model=resnet14", "-m", "seed=1,2", *DRY)),
    (True, ("cache", "loss=ce")), (True, ("gradients", "loss=ce")), (True, ("layers", "all=perhaps")), (False, ("layers", "all=TRUE")),
    (True, ("layers", "model=nothing")), (True, ("export",)), (True, ("export", "run=nowhere")), (True, ("export", "run=.")),
    (True, ("export", "run=", "images=0")), (True, ("export", "nothing=1")), (True, ("export", "run=nowhere", "formats=[x]")), (True, ("evaluate",)),
    (True, ("evaluate", "run=nowhere")), (True, ("evaluate", "weights=nowhere", "model=resnet8", "data=digits")), (True, ("evaluate", "batch_size=0", "run=.")),
    (True, ("evaluate", "weights=.", "model=resnet8", "data=digits")), (True, ("predict",)), (True, ("predict", "model=.", "images=.")),
    (True, ("predict", "model=", "images=")), (True, ("predict", "model=nowhere", "images=nowhere")), (None, ("runs",)), (None, ("runs", "outputs=nowhere")),
    (True, ("runs", "x")), (True, ("runs", "nothing=1", "outputs=.")), (True, ("runs", "sort=nothing", "outputs=.")), (True, ("reproduce", "table=nowhere")),
    (True, ("reproduce", "table=../../etc")), (True, ("reproduce", "table=quick/digits", "seeds=0")), (True, ("reproduce", "table=quick/digits", "epochs=2")),
    (True, ("reproduce", "tabel=quick/digits")), (True, ("benchmark", "nothing")), (True, ("nothing",)), (True, ("",)), (False, ()), (False, ("--version",)),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command line, and whether it must be refused (None: either will do)."""

    words: tuple[str, ...]
    wrong: bool | None


def cases() -> Iterator[Case]:
    """All lines."""
    for wrong, words in ODD:
        yield Case(words, wrong)
    yield from schema_cases(RunConfig, "")
    yield from component_cases()
    for group in sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir()):
        if group not in ("hydra", "table"):
            yield Case(("train", f"{group}=no_such_choice"), True)


def schema_cases(node: type, prefix: str) -> Iterator[Case]:
    """Each key of the schema with values of other types, and numbers that are none."""
    for name, kind in get_type_hints(node).items():
        key = f"{prefix}{name}"
        inner = [part for part in get_args(kind) if part is not type(None)] if isinstance(kind, UnionType) else [kind]
        if is_dataclass(kind):
            yield from schema_cases(kind, f"{key}.")  # pyright: ignore[reportArgumentType]
        elif inner == [bool]:
            yield from (Case(("train", f"{key}={value}", *TINY), True) for value in ("perhaps", "[true]", "''"))
        elif inner in ([int], [float]):
            wrong = (*NO_NUMBER, *NOT_FINITE, *(HUGE if inner == [int] else ()))
            yield from (Case(("train", *TINY, f"{key}={value}"), True) for value in wrong)
            yield from (
                Case(("train", *TINY, f"{key}={value}"), None) for value in ("-1", "0", "1e-300", "0.5", "null")
            )


def component_cases() -> Iterator[Case]:
    """Each number and switch of the components of a run."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = OmegaConf.to_container(compose("config", ["loss=[kd,at,nst_poly,fitnet]"]), resolve=True)
    assert isinstance(cfg, dict)
    for group in ("data", "model", "optim", "schedule", "loss"):
        for key, value in _leaves(cfg[group], group):
            base = ("train", "loss=[kd,at,nst_poly,fitnet]", *DRY) if group == "loss" else ("train", *TINY)
            if isinstance(value, bool):
                yield from (Case((*base, f"{key}={word}"), True) for word in ("perhaps", "[1]"))
            elif isinstance(value, int | float):
                yield from (Case((*base, f"{key}={word}"), True) for word in (*NO_NUMBER[:4], *NOT_FINITE))
                yield from (Case((*base, f"{key}={word}"), None) for word in ("-1", "0", "1e30", "null"))
            else:
                yield from (
                    Case((*base, f"{key}={word}"), None) for word in ("7", "[]", "[nan]", "''", "no_such_word", "{}")
                )


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}.{name}")
    else:
        yield prefix, node


def outcome(case: Case, seconds: float = SECONDS) -> tuple[str, str]:
    """What a line came to, in a forked child, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder, "printed")
        (place := Path(folder, "here")).mkdir()
        pid = os.fork()
        if pid == 0:
            _child(case.words, place, printed)
        status, last = None, time.monotonic() + seconds
        while status is None and time.monotonic() < last:
            found, code = os.waitpid(pid, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if found else None
            time.sleep(0.01)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        text = printed.read_text(errors="replace")
        return judge(case, status, text, bool(list(place.rglob("metrics.jsonl")))), text


def _child(words: tuple[str, ...], place: Path, printed: Path) -> None:
    file = os.open(printed, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(place)
    sys.argv = ["nst"]
    status = 1
    try:
        from nst.cli.main import main

        main(words)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def judge(case: Case, status: int | None, text: str, worked: bool) -> str:
    """Name an outcome: in capitals where it is a failure."""
    if status is None:
        return "HANG"
    if status < 0 or "Traceback" in text:
        return "TRACEBACK"
    if status == 0:
        return "ACCEPTED THOUGH WRONG" if case.wrong else "ran"
    if not any(sign in text for sign in ("error: ", "failed: ")):
        return "REFUSED WITHOUT A WORD"
    if case.wrong is False:
        return "REFUSED THOUGH RIGHT"
    return "refused after work began" if worked else "clear error"


def main() -> int:
    """Run all; the number of failures is the exit status' sign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="lines that hold this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=250, help="so many lines, drawn by the seed (0: all)")
    arguments = parser.parse_args()
    import sklearn.datasets  # noqa: F401  (what every child needs)
    import torch

    import nst.cli.train
    import nst.run  # noqa: F401

    torch.set_num_threads(1)
    selected = [case for case in cases() if arguments.only in " ".join(case.words)]
    if arguments.cases:
        selected = random.Random(arguments.seed).sample(selected, min(arguments.cases, len(selected)))
    counts: Counter[str] = Counter()
    for case in selected:
        result, text = outcome(case)
        counts[result] += 1
        if result[0].isupper() or result == "refused after work began":
            print(
                f"{result}: nst {' '.join(map(repr, case.words))}\n    " + "\n    ".join(text.splitlines()[-4:]),
                flush=True,
            )
    print("\n".join(f"{count:5d} {name}" for name, count in counts.most_common()))
    return int(any(name[0].isupper() for name in counts))


if __name__ == "__main__":
    sys.exit(main())
