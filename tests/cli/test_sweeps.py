"""Sweeps: what is skipped, continued, reported; parallel launchers; search."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, Compose

import nst.storage.folder
from nst.cli.main import command
from nst.cli.train import run
from nst.files import write_whole
from nst.loop import Training
from nst.storage.folder import RunFolder

Sweep = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def sweep(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """`sweep("seed=0,1", …)`: `nst train -m …` in this process: its exit status and the jobs of its last sweep."""

    def start(*overrides: str) -> tuple[int, list[dict[str, Any]]]:
        before = set(tmp_path.glob("sweeps/*"))
        monkeypatch.setattr(sys, "argv", ["nst"])
        monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.chdir(tmp_path)
        status = 0
        try:
            command("train", ["-m", f"outputs={tmp_path}", *tiny, *overrides])
        except SystemExit as stop:
            status = int(stop.code or 0)
        files = set(tmp_path.glob("sweeps/*")) - before
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return status, sorted(lines, key=lambda job: job["job"])

    return start


ALONE = ("teacher=none", "loss=ce")


def test_a_failed_job_costs_no_other_and_is_told_at_the_end(
    sweep: Sweep, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, jobs = sweep(*ALONE, "trainer.batch_size=0,16", "seed=0,1", "trainer.epochs=1")
    assert status == 1
    assert [job["state"] for job in jobs] == ["failed", "failed", "finished", "finished"]
    assert len([*tmp_path.rglob("student.safetensors")]) == 2
    printed = capfd.readouterr().out
    assert "jobs 0, 1 failed: trainer.batch_size=0: a number at least 1 is needed" in printed
    assert printed.endswith(f"2 of 4 jobs finished: nst runs outputs={tmp_path}\n")
    assert "next:" not in printed


def test_a_dry_run_leaves_nothing(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep(*ALONE, "dry_run=true", "seed=0,1") == (0, [])
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_stopped_sweep_continues_where_it_was(
    sweep: Sweep, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished runs are skipped, the interrupted one goes on from its step, the others start."""
    step = Training.step

    def stop_at_four(self: Training, batch: Any, targets: Any) -> None:
        step(self, batch, targets)
        if self.seed == 1 and self.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Training, "step", stop_at_four)
    status, jobs = sweep(*ALONE, "seed=0,1,2")
    assert status == 128 + signal.SIGTERM
    assert [job["state"] for job in jobs] == ["finished", "interrupted"]
    capfd.readouterr()
    monkeypatch.setattr(Training, "step", step)
    status, jobs = sweep(*ALONE, "seed=0,1,2")
    printed = capfd.readouterr().out
    assert status == 0
    assert [job["state"] for job in jobs] == ["finished"] * 3
    assert printed.count("finished earlier; nothing was run") == 1
    assert printed.count("continuing after step 4 of 6") == 1


@pytest.mark.parametrize(
    ("launcher", "package", "extra"),
    [
        ("processes", "hydra_plugins.hydra_joblib_launcher", "joblib"),
        ("slurm_local", "hydra_plugins.hydra_submitit_launcher", "slurm"),
        ("ray_jobs", "hydra_plugins.hydra_ray_launcher", "ray"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the launchers' own
def test_launchers_run_jobs_side_by_side(launcher: str, package: str, extra: str, sweep: Sweep, tmp_path: Path) -> None:
    """Two jobs that need the same teacher, not trained yet: one of them trains it."""
    pytest.importorskip(package, reason=f"needs pip install 'nst[{extra}]'")
    own = ["hydra.launcher.ray.remote.num_gpus=0"] if launcher == "ray_jobs" else []
    status, jobs = sweep(f"hydra/launcher={launcher}", "loss=kd", "seed=0,1", *own)
    assert status == 0
    assert [job["state"] for job in jobs] == ["finished", "finished"]
    [teacher] = tmp_path.glob("digits/none-resnet8/ce/*/summary.json")
    students = [*tmp_path.glob("digits/resnet8-resnet8/kd/*/summary.json")]
    assert len({json.loads(file.read_text())["teacher"]["sha256"] for file in students}) == 1
    assert len(students) == 2
    assert teacher.is_file()


def test_the_slurm_configuration_is_one_the_plugin_takes(compose: Compose) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'nst[slurm]'")
    compose("hydra/launcher=slurm")


@pytest.mark.filterwarnings("ignore")  # the launcher's own
def test_slurm_where_there_is_none_is_told_in_words(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'nst[slurm]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sweep("hydra/launcher=slurm", *ALONE, "seed=0,1") == (2, [])
    told = capfd.readouterr().err
    assert "Slurm's srun is not on this machine; hydra/launcher=slurm_local does without" in told
    assert "Traceback" not in told


def test_a_run_waits_for_the_teacher_that_another_trains(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It says so, and takes the other's result."""
    monkeypatch.setattr(nst.storage.folder, "PATIENCE", 0.05)
    teacher = Path(run(compose(*tiny, "loss=kd"))["teacher"]["weights"]).parent
    summary, metrics = teacher / "summary.json", (teacher / "metrics.jsonl").stat()
    content = summary.read_bytes()
    summary.unlink()
    held = threading.Event()

    def finish() -> None:  # a lock belongs to its thread
        other = RunFolder(teacher)
        other.open(json.loads((teacher / "config.json").read_text()))
        held.set()
        time.sleep(1)
        write_whole(summary, content)  # atomically: the waiting run may read it at any moment
        other.close()

    thread = threading.Thread(target=finish)
    thread.start()
    held.wait()
    run(compose(*tiny, "loss=kd", "seed=1"))
    thread.join()
    assert capfd.readouterr().out.count(f"waiting: {teacher} is being written by another process") == 1
    assert (teacher / "metrics.jsonl").stat() == metrics


SEARCH = ("loss.nst_poly.weight=tag(log,interval(1,100))", "loss.nst_poly.layers=choice(last,stage2)")


@pytest.mark.filterwarnings("ignore")  # Optuna's own
def test_a_search_over_weights_layers_and_temperature_repeats_itself(sweep: Sweep) -> None:
    """The same command proposes the same runs, which are finished then."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install 'nst[optuna]'")
    arguments = ["hydra/sweeper=search", "hydra.sweeper.n_trials=3", "loss=kd_nst_poly", *SEARCH, "trainer.epochs=1"]
    found = [sweep(*arguments, "loss.kd.temperature=choice(2,4)") for _ in range(2)]
    assert [status for status, _ in found] == [0, 0]
    assert found[0][1] == found[1][1]
    assert len({*map(str, (job["overrides"] for job in found[0][1]))}) == 3
