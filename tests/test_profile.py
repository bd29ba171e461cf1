"""`trainer.profile`: a trace of a few steps, and the same run."""

import json
from pathlib import Path

import pytest
from tests.conftest import Compose

from nst.cli.train import run


@pytest.mark.filterwarnings("ignore:.*[Pp]rofiler.*")  # torch's, where it finds no GPU to trace
def test_a_profiled_run_leaves_a_trace_and_is_the_same_run(compose: Compose, tiny: list[str]) -> None:
    settings = [*tiny, "teacher=none", "loss=ce", "trainer.batch_size=4", "trainer.epochs=1"]
    summary = run(compose(*settings, "trainer.profile=true"))
    [trace] = (Path(summary["folder"]) / "profile").glob("*.pt.trace.json")
    events = json.loads(trace.read_text())["traceEvents"]
    assert (
        sum(event["name"].startswith("ProfilerStep#") for event in events if event.get("cat") == "user_annotation") == 5
    )
    assert run(compose(*settings))["was_finished"]
