"""The benchmark's baselines compute our losses, and its command measures, compares and prints."""

import json
from argparse import ArgumentParser

import pytest
import torch

from benchmarks import implementations, losses
from nst import build
from nst.config import CONFIGS


@pytest.mark.parametrize("name", implementations.BASELINES)
def test_baselines_equal_ours(name):
    student, teacher = torch.randn(3, 4, 3, 3), torch.randn(3, 6, 3, 3)
    ours = implementations.ours(implementations.OURS[name.partition("-")[0]]())
    value = implementations.BASELINES[name](student, teacher)
    torch.testing.assert_close(value, ours(student, teacher), rtol=1e-4, atol=1e-6)


def test_the_command(tmp_path, capsys):
    parser = ArgumentParser()
    losses.add_arguments(parser)
    target = tmp_path / "losses.json"
    words = "--parts implementations steps --settings crd --methods poly poly-broadcast --losses kd --device cpu --seconds 0"
    losses.run(parser.parse_args([*words.split(), "--repeats", "2", "--memory-gb", "0.01", "--json", str(target)]))
    report = json.loads(target.read_text())
    ours, broadcast = report["rows"]
    assert broadcast["batch"] < ours["batch"] == 64
    assert ours["speedup"] == pytest.approx(broadcast["ms_per_image"] / ours["ms_per_image"])
    assert len(report["machine"]["commit"]) >= 7
    assert report["steps"][0]["layers"] == ["logits"]
    assert "CRD, last stage" in capsys.readouterr().out


def test_every_loss_stands_beside_the_step():
    chosen = {path.stem for path in (CONFIGS / "loss" / "crd").glob("*.yaml")} - {"nst", "kd_standardized"}
    assert set(losses.LOSSES) >= chosen | {"nst_linear", "nst_poly", "nst_gaussian"}
    chosen = ",".join(words[0].removeprefix("loss=") for words in losses.LOSSES.values())
    more = [word for words in losses.LOSSES.values() for word in words[1:]]
    terms = build.terms(losses.settings_of(f"loss=[{chosen}]", *more))
    assert {term.name for term in terms if term.loss.source == "teacher"} == set(losses.LOSSES)
