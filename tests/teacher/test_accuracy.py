"""Teachers without a classifier, and with which normalisation a teacher looks at images."""

from pathlib import Path

import pytest
import torch
from tests.conftest import Compose

from nst.cli.train import run
from nst.models import resnet8, timm_model
from nst.models.external import InputFormat
from nst.models.weights import save_weights
from nst.teacher import Normalization
from nst.teacher.network import load_teacher

DATA = Normalization((0.4, 0.4, 0.4), (0.3, 0.3, 0.3))
HEADLESS = [
    "teacher=timm", "teacher.model.arch=vit_tiny_patch16_224", "teacher.model.num_classes=0", "teacher.model.image_size=32",
    "teacher.model.input_size=32",
]  # fmt: skip
POLY = ["loss=nst_poly", "loss.nst_poly.layers=[{teacher: blocks.5, student: last}]"]


def test_a_teacher_without_a_classifier(
    compose: Compose, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    save_weights(tmp_path / "vit", timm_model("vit_tiny_patch16_224", 0, in_channels=1, image_size=32), {})
    words, weights = [*tiny, *HEADLESS, *POLY], f"teacher.weights={tmp_path}/vit"
    assert run(compose(*words, weights))["teacher"]["measure"] == "knn"
    assert "accuracy of the 20 nearest neighbours" in capsys.readouterr().out
    for own, message in (
        ([weights, "loss=[kd,nst_poly]"], r"teacher\.model: .*\(192,\)"),
        ([], r"teacher\.model .*\(192,\).* name teacher\.weights"),
        ([weights, "teacher.min_accuracy=99.9"], r"scores \d+\.\d+ % .*teacher\.min_accuracy=99\.9"),
    ):
        with pytest.raises(ValueError, match=message):
            run(compose(*words, *own))


def test_the_normalisation_is_as_given_else_stored_else_recorded_else_the_datas(tmp_path: Path) -> None:
    recorded, plain = resnet8(10), resnet8(10)
    recorded.input_format = InputFormat((0.5,) * 3, (0.6,) * 3, 224, "bicubic", "timm's vit", 1000)  # pyright: ignore[reportAttributeAccessIssue]
    stored = {"mean": "0.1,0.2,0.3", "std": "0.4,0.5,0.6"}
    for network, metadata, mean, std, expected in (
        (recorded, stored, [0.7] * 3, [0.8] * 3, "mean 0.7, 0.7, 0.7, std 0.8, 0.8, 0.8, as given"),
        (recorded, stored, None, None, "mean 0.1, 0.2, 0.3, std 0.4, 0.5, 0.6, as stored"),
        (recorded, {}, None, None, "mean 0.5, 0.5, 0.5, std 0.6, 0.6, 0.6, by the record of timm's vit"),
        (plain, {}, None, None, "mean 0.4, 0.4, 0.4, std 0.3, 0.3, 0.3, as the data"),
    ):
        save_weights(tmp_path / "own", plain, metadata)
        assert load_teacher(network, DATA, str(tmp_path / "own"), None, mean, std)["input"].startswith(expected)


def test_how_weights_are_used_is_refused_where_there_are_none(compose: Compose, tiny: list[str]) -> None:
    members = [f"+model@teacher.model.members.{name}.network=resnet8" for name in "ab"]
    for network in ([], ["teacher=ensemble", *members]):
        with pytest.raises(ValueError, match=r"teacher\.weights_key=ema is for a teacher with weights"):
            run(compose(*tiny, "loss=kd", "teacher.weights_key=ema", *network))
