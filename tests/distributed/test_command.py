"""`torchrun train.py`: the same runs as `python train.py`, also as a sweep and with processes that read images."""

import json
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, Compose
from tests.data.samples import write_tree
from tests.faults.conftest import environment
from tests.outcome import rows

from nst.cli.train import run


def torchrun(*arguments: str, nodes: int) -> str:
    """Run `torchrun` once for each node, all on this machine, one process on each; they meet at a port. What they printed."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=nst", "--local-addr=127.0.0.1"]
    to = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, *arguments], env=environment(), **to) for _ in range(nodes)]
    texts = [process.communicate(timeout=200)[0] for process in started]
    assert not any(process.returncode for process in started), texts
    return "".join(texts)


def test_two_ranks_give_the_runs_of_one_process(tmp_path: Path, compose: Compose, tiny: list[str]) -> None:
    """On two nodes, a sweep, teacher included: logs, and what is printed and written. Equal numbers: test_ranks.py, where no norm sees a part of a batch.

    With data workers the ranks hung after the last line: these ignore one SIGTERM, and it was the one that was to end them.
    """
    write_tree(tmp_path / "photos", classes=2)
    data = ["data=folder", f"data.root={tmp_path}/photos", "data.num_classes=2", "data.size=16", "data.limit=null"]
    own = ["loss=kd_fitnet", "trainer.batch_size=4", "trainer.workers=1", "trainer.epochs=1", "optim.lr=0.01"]
    settings = [*tiny, *data, *own, "teacher.train.batch_size=4", "teacher.train.optim.lr=0.01"]
    text = torchrun(str(ROOT / "train.py"), "-m", f"outputs={tmp_path}/ranks", "seed=0,1", *settings, nodes=2)
    one = run(compose(*settings, "seed=1"))

    folder = Path(one["folder"])
    [twin] = (tmp_path / "ranks").glob(f"folder/resnet8-resnet8/kd+fitnet/{folder.name}")
    assert len(list((tmp_path / "ranks").glob("folder/*/*/*/student.safetensors"))) == 3  # two students, a teacher
    assert json.loads((twin / "summary.json").read_text())["test"]["images"] == one["test"]["images"]
    assert [(row["kind"], row["step"]) for row in rows(folder)] == [(row["kind"], row["step"]) for row in rows(twin)]
    said = "2 ranks: global batch size 4; learning rate 0.01"
    assert text.count(said) == 3  # rank 0 alone prints
    assert "2 of 2 jobs finished" in text
