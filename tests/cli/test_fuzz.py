"""A few of the fuzzer's lines (tests/cli/fuzz.py), in one process with everything imported."""

import os
import subprocess
import sys

from tests.cli.fuzz import Case, cases, judge
from tests.conftest import ROOT

CODE = """
import sklearn.datasets, nst.cli.train, nst.run
from tests.cli.fuzz import outcome
from tests.cli.test_fuzz import CHOSEN
for case in CHOSEN:
    result, text = outcome(case)
    if result not in ("ran", "clear error"):
        print(result, case.words, text)
"""
DRY = "dry_run=true"
CHOSEN = [
    Case(words, wrong)
    for wrong, words in (
        (True, ("train", "=")),
        (True, ("train", "")),
        (True, ("train", "seed=1,2")),
        (True, ("train", "seed=")),
        (True, ("train", "--config-dir")),
        (True, ("train", "model=[resnet8,resnet14]")),
        (True, ("train", "data=null")),
        (True, ("train", "model._target_=nowhere.Net")),
        (True, ("train", "optim._target_=torch.nn.Linear")),
        (True, ("train", "tracker.tensorboard._target_=print")),
        (True, ("train", "layers=7")),
        (True, ("train", "trainer.epochs=1e400")),
        (True, ("train", "optim.lr=nan")),
        (True, ("train", "seed=${nothing}")),
        (True, ("train", "loss.nst_poly=null")),
        (True, ("layers", "model=nothing")),
        (False, ("train", "teacher=null", "loss=ce", DRY)),
        (False, ("train", "model=resnet14", "-m", "seed=1,2", DRY)),
        (False, ("train", "outputs=größe ü", DRY)),
    )
]


def test_twenty_lines() -> None:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stdout


def test_the_fuzzer_has_every_kind_of_line() -> None:
    found = list(cases())
    assert len(found) > 700
    assert {True, False, None} == {case.wrong for case in found}
    keys = " ".join(word for case in found for word in case.words)
    assert all(key in keys for key in ("trainer.epochs=", "cache.large=", "loss.kd.temperature=", "optim.lr="))


def test_what_is_no_success_is_distinguished() -> None:
    wrong, right = Case(("train",), True), Case(("train",), False)
    assert judge(wrong, 0, "", False) == "ACCEPTED THOUGH WRONG"
    assert judge(right, 1, "error: no", False) == "REFUSED THOUGH RIGHT"
    assert judge(wrong, 1, "", False) == "REFUSED WITHOUT A WORD"
    assert judge(wrong, 1, "Traceback (most recent call last)", False) == judge(wrong, -11, "", False) == "TRACEBACK"
    assert judge(wrong, None, "", False) == "HANG"
    assert judge(wrong, 1, "error: no", True) == "refused after work began"
