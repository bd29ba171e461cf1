"""Sweeps: what is skipped, continued, reported; parallel launchers; search."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Nst, Said
from tests.conftest import Compose

from nst.cli.train import run
from nst.loop import Training
from nst.storage.folder import RunFolder, RunLockedError

Sweep = Callable[..., tuple[Said, list[dict[str, Any]]]]
ALONE = ("teacher=none", "loss=ce")


@pytest.fixture
def sweep(nst: Nst, tmp_path: Path, tiny: list[str]) -> Sweep:
    """`sweep("seed=0,1", …)`: `nst train -m …` in this process: what it came to, and its jobs' records by number."""

    def start(*overrides: str) -> tuple[Said, list[dict[str, Any]]]:
        before = {*tmp_path.rglob("sweeps/*")}
        said = nst("train", "-m", *tiny, *overrides)
        lines = [line for file in {*tmp_path.rglob("sweeps/*")} - before for line in file.read_text().splitlines()]
        return said, sorted(map(json.loads, lines), key=lambda job: job["job"])

    return start


def test_a_failed_job_costs_no_other_and_is_told_at_the_end(sweep: Sweep, tmp_path: Path) -> None:
    said, jobs = sweep(*ALONE, "trainer.batch_size=0,16", "seed=0,1", "trainer.epochs=1")
    assert said.status == 1
    assert [job["state"] for job in jobs] == ["failed", "failed", "finished", "finished"]
    assert len([*tmp_path.rglob("student.safetensors")]) == 2
    assert "jobs 0, 1 failed: trainer.batch_size=0: a number at least 1 is needed" in said.out
    assert said.out.endswith("2 of 4 jobs finished: nst runs outputs=outputs\n")
    assert "next:" not in said.out


def test_a_stopped_sweep_continues_where_it_was(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs are skipped, the interrupted one goes on from its step, the others start."""
    step = Training.step

    def stop_at_four(self: Training, batch: Any, targets: Any) -> None:
        step(self, batch, targets)
        if self.seed == 1 and self.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Training, "step", stop_at_four)
    said, jobs = sweep(*ALONE, "seed=0,1,2")
    assert said.status == 128 + signal.SIGTERM
    assert [job["state"] for job in jobs] == ["finished", "interrupted"]
    monkeypatch.setattr(Training, "step", step)
    said, jobs = sweep(*ALONE, "seed=0,1,2")
    assert said.status == 0
    assert [job["state"] for job in jobs] == ["finished"] * 3
    assert said.out.count("finished earlier; nothing was run") == 1
    assert said.out.count("continuing after step 4 of 6") == 1


@pytest.mark.filterwarnings("ignore")  # the launcher's own
def test_a_launcher_runs_jobs_side_by_side(sweep: Sweep, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Two jobs that need the same teacher, not trained yet: one of them trains it."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs pip install 'nst[joblib]'")
    from joblib.externals.loky import get_reusable_executor

    request.addfinalizer(lambda: get_reusable_executor().shutdown(wait=True, kill_workers=True))
    said, jobs = sweep("hydra/launcher=processes", "hydra.launcher.n_jobs=2", "loss=kd", "seed=0,1", "trainer.epochs=1")
    assert said.status == 0, said.err
    assert [job["state"] for job in jobs] == ["finished", "finished"]
    students = [json.loads(file.read_text()) for file in tmp_path.glob("*/digits/resnet8-resnet8/kd/*/summary.json")]
    [teacher] = tmp_path.glob("*/digits/none-resnet8/ce/*/student.safetensors")
    assert [Path(student["teacher"]["weights"]).name for student in students] == [teacher.name] * 2
    assert len({student["teacher"]["sha256"] for student in students}) == 1


@pytest.mark.filterwarnings("ignore")  # the launcher's own
def test_slurm_where_there_is_none_is_told_in_words(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its configuration is one that the plugin takes."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'nst[slurm]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    said, jobs = sweep("hydra/launcher=slurm", *ALONE, "seed=0,1")
    assert (said.status, jobs) == (2, [])
    assert 'Could not detect "srun"' in said.error


def test_a_run_waits_for_the_teacher_that_another_trains(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It says so once, and takes the other's result."""
    summary = Path(run(compose(*tiny, "loss=kd"))["teacher"]["weights"]).with_name("summary.json")
    content, metrics = summary.read_bytes(), summary.with_name("metrics.jsonl").stat()
    summary.unlink()
    opened, tries = RunFolder.open, list[str]()

    def held(self: RunFolder, config: dict[str, Any]) -> None:
        if self.path == summary.parent and len(tries) < 2:
            tries.append("by another")
            raise RunLockedError("held")
        summary.write_bytes(content)
        opened(self, config)

    monkeypatch.setattr(RunFolder, "open", held)
    run(compose(*tiny, "loss=kd", "seed=1"))
    assert capfd.readouterr().out.count("waiting: held") == 1
    assert summary.with_name("metrics.jsonl").stat() == metrics


@pytest.mark.filterwarnings("ignore")  # Optuna's own
def test_a_search_over_weights_layers_and_temperature_repeats_itself(sweep: Sweep) -> None:
    """The same command proposes the same runs, which are finished then."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install 'nst[optuna]'")
    space = (
        "nst_poly.weight=tag(log,interval(1,100))",
        "nst_poly.layers=choice(last,stage2)",
        "kd.temperature=choice(2,4)",
    )
    search = ["hydra/sweeper=search", "hydra.sweeper.n_trials=3", *(f"loss.{key}" for key in space)]
    (first, jobs), (again, same) = (sweep("loss=kd_nst_poly", "trainer.epochs=1", *search) for _ in range(2))
    assert (first.status, again.status) == (0, 0)
    assert jobs == same
    assert len({*map(str, (job["overrides"] for job in jobs))}) == 3
