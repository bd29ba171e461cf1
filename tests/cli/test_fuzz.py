"""Command lines that nobody should type: each gives a clear error before any work, or runs."""

import shlex
from pathlib import Path

import pytest
from tests.cli.conftest import Nst

WRONG = """
train = | train ~ | train ' ' | train seed==1 | train +seed=1 +seed=2 | train seed= | train ~nothing | train ~data | train model=null | train loss=[]
train teacher=null | train data=[digits,cifar10] | train model=../model/resnet8x | train model=/etc/passwd | train loss=kd] | train layers=[{teacher:last}]
train layers=null | train layers=7 | train +loss.x=3 | train +loss.x={} | train loss.nst_poly=null | train loss.nst_poly._target_=os.system
train loss.nst_poly.weight=0 loss.ce.weight=0 | train optim._target_=torch.nn.Linear | train schedule._target_=print | train +tracker.x=1 | train cache.views=-1
train cache.views=many | train --config-name nowhere | train outputs=/dev/null/x loss=ce | train seed=${seed} | train outputs=${oc.env:NOT_SET} | train seed=???
train model.name=../up dry_run=true | train model.num_classes=3 dry_run=true | train trainer.epochs=1e400 | train trainer.epochs=99999999999999999999
train optim.lr=nan dry_run=true | train optim.lr=[1] dry_run=true | train loss.nst_poly.weight=1e400 | train data.validation=日本 | cache loss=ce
gradients loss=ce | layers model=nothing | export run=. | export run=nowhere formats=[x] | reproduce table=../../etc | ''
"""
RIGHT = """
train teacher=null loss=ce dry_run=true | train 'loss=[kd, at]' dry_run=true | train model=resnet14 -m seed=1,2 dry_run=true | train 'outputs=a=b (1) [2] ü' dry_run=true
layers all=TRUE | --version | runs | train --cfg job --resolve
"""


def lines(text: str) -> list[str]:
    return [line.strip() for row in text.strip().splitlines() for line in row.split(" | ")]


@pytest.mark.parametrize("line", [*lines(WRONG), *lines(RIGHT)])
def test_a_line(line: str, nst: Nst, tmp_path: Path) -> None:
    """Whatever is no error of the user's would end in a traceback here."""
    said = nst(*shlex.split(line))
    if line in lines(RIGHT):
        assert said.status == 0, said.err
    else:
        assert said.status in (1, 2)
        assert "error: " in said.err
    assert not list(tmp_path.rglob("*.jsonl"))
