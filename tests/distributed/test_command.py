"""`nst train -m` on two ranks: the runs of one process. By torchrun itself: tests/faults."""

import json
import os
import sys
from pathlib import Path

from tests.conftest import Compose
from tests.data.samples import write_tree
from tests.faults.conftest import on_ranks
from tests.outcome import rows

from nst.cli.main import main
from nst.cli.train import run


def sweep(folder: Path, words: list[str]) -> None:
    """As a rank: `nst train -m`, whose output goes to a file."""
    output = os.open(folder / f"output{os.environ['RANK']}.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(folder)
    sys.argv = ["nst"]
    main(["train", "-m", *words])


def test_two_ranks_give_the_runs_of_one_process(tmp_path: Path, compose: Compose, tiny: list[str]) -> None:
    """Teacher included: logs, and what is printed and written. Equal numbers: test_ranks.py, where no norm sees a part of a batch."""
    write_tree(tmp_path / "photos", classes=2)
    data = ["data=folder", f"data.root={tmp_path}/photos", "data.num_classes=2", "data.size=16", "data.limit=null"]
    own = ["loss=kd_fitnet", "trainer.batch_size=4", "trainer.workers=0", "trainer.epochs=1", "optim.lr=0.01"]
    settings = [*tiny, *data, *own, "teacher.train.batch_size=4", "teacher.train.optim.lr=0.01"]
    assert on_ranks(sweep, tmp_path, [f"outputs={tmp_path}/ranks", "seed=0,1", *settings]) == [0, 0]
    text = "".join((tmp_path / f"output{rank}.txt").read_text() for rank in range(2))
    one = run(compose(*settings, "seed=1"))

    folder = Path(one["folder"])
    [twin] = (tmp_path / "ranks").glob(f"folder/resnet8-resnet8/kd+fitnet/{folder.name}")
    assert len(list((tmp_path / "ranks").glob("folder/*/*/*/student.safetensors"))) == 3  # two students, a teacher
    assert json.loads((twin / "summary.json").read_text())["test"]["images"] == one["test"]["images"]
    assert [(row["kind"], row["step"]) for row in rows(folder)] == [(row["kind"], row["step"]) for row in rows(twin)]
    said = "2 ranks: global batch size 4; learning rate 0.01"
    assert text.count(said) == 3  # rank 0 alone prints
    assert "2 of 2 jobs finished" in text
