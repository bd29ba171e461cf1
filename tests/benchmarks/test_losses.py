"""The benchmark's baselines compute our losses, and its command measures, compares and prints."""

import json
from argparse import ArgumentParser

import pytest
import torch

from benchmarks import baselines, loss_steps, losses
from nst import build
from nst.config import CONFIGS
from nst.losses import NST


@pytest.mark.parametrize("kernel", ["linear", "polynomial", "gaussian"])
def test_baselines_equal_ours(kernel):
    student, teacher = torch.randn(3, 4, 3, 3), torch.randn(3, 6, 3, 3)
    ours = NST(kernel)
    implementations = {
        "linear": (baselines.broadcast_dot, baselines.product_dot),
        "polynomial": (baselines.broadcast_dot, baselines.product_dot),
        "gaussian": (baselines.broadcast_distance, baselines.product_distance),
    }
    for implementation in implementations[kernel]:
        value = getattr(baselines, kernel)(student, teacher, implementation)
        torch.testing.assert_close(value, ours(student, ours.target(teacher, (4, 3, 3))), rtol=1e-4, atol=1e-6)


def test_the_command(tmp_path, capsys):
    parser = ArgumentParser()
    losses.add_arguments(parser)
    target = tmp_path / "losses.json"
    words = "--parts implementations --settings crd --methods poly poly-broadcast --allocators default --device cpu --seconds 0 --repeats 2"
    losses.run(parser.parse_args([*words.split(), "--memory-gb", "0.01", "--json", str(target), "--markdown"]))
    report = json.loads(target.read_text())
    ours, broadcast = report["rows"]
    assert broadcast["batch"] < ours["batch"] == 64
    assert ours["speedup"] == pytest.approx(broadcast["ms_per_image"] / ours["ms_per_image"])
    assert len(report["machine"]["commit"]) >= 7
    table = capsys.readouterr().out
    assert "CRD, last stage" in table
    assert f"(B {broadcast['batch']})" in table
    losses.print_tables(report)
    assert "poly-broadcast" in capsys.readouterr().out


def test_every_loss_stands_beside_the_step():
    chosen = {path.stem for path in (CONFIGS / "loss" / "crd").glob("*.yaml")} - {"nst", "kd_standardized"}
    assert set(loss_steps.LOSSES) >= chosen | {"nst_linear", "nst_poly", "nst_gaussian"}
    for name, words in loss_steps.LOSSES.items():
        term = build.terms(loss_steps.settings_of(*words))[-1]
        assert (term.name, term.loss.source) == (name, "teacher")


def test_shares_are_medians_of_turns():
    found = loss_steps.summarise([(1.0, 0.5, 10.0, 5.0), (4.0, 0.6, 20.0, 5.0), (3.0, 0.4, 10.0, 5.0)])
    assert found["share"] == pytest.approx(0.2)
    assert found["share_by_processor_time"] == pytest.approx(0.1)
    assert found["median_ms"] == pytest.approx(3000)
