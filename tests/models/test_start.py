"""A student that starts from weights: `model.weights`, `model.drop`, `model.freeze`."""

from pathlib import Path

import pytest
import torch
from tests.conftest import Compose

from nst import build
from nst.cli.train import run
from nst.export import finished_run
from nst.models import resnet8
from nst.models.weights import read_weights, save_weights


def test_a_run_starts_from_weights_and_keeps_what_is_frozen(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    start = resnet8(num_classes=7, in_channels=1)
    save_weights(tmp_path / "start.safetensors", start)
    words = [f"++model.weights={tmp_path}/start.safetensors", "++model.drop=[fc]", "++model.freeze=[conv1,bn1,layer1]"]
    folder = run(compose(*tiny, "loss=ce", "trainer.epochs=1", *words))["folder"]
    (tmp_path / "start.safetensors").unlink()  # the run has its own weights
    trained, before = finished_run(folder).student().state_dict(), start.state_dict()
    kept = {
        name
        for name, value in trained.items()
        if value.shape == before[name].shape and torch.equal(value, before[name])
    }
    assert kept == {name for name in before if name.startswith(("conv1", "bn1", "layer1"))}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"weights": "nowhere.pt"}, "model: weights file nowhere.pt does not exist"),
        ({"freeze": ["layer9"]}, r"model: freeze=\['layer9'\]: CifarResNet has no part 'layer9'"),
    ],
)
def test_errors_name_the_model(words: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build.network("model", {"_target_": "nst.models.CifarResNet", "depth": 8, **words}, seed=0)


def test_a_teacher_of_another_size_looks_at_images_of_its_own(
    compose: Compose, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The size is stored with weights; `teacher.input_size` overrides it."""
    teacher = resnet8(num_classes=10, in_channels=1)
    save_weights(tmp_path / "teacher.safetensors", teacher, {"mean": "0.3", "std": "0.4", "size": "16"})
    words = ["loss=[kd,nst_poly]", "trainer.epochs=1", f"teacher.weights={tmp_path}/teacher.safetensors"]
    shapes = build.networks(build.settings(compose(*tiny, *words))).teacher_shapes
    assert shapes["last"] == (64, 4, 4)
    own = build.networks(build.settings(compose(*tiny, *words, "teacher.input_size=8"))).teacher_shapes
    assert own["last"] == (64, 2, 2)
    folder = Path(run(compose(*tiny, *words))["folder"])
    assert "mean 0.3, std 0.4, as stored with its weights; looked at as 16×16 pixels" in capsys.readouterr().out
    assert read_weights(folder / "student.safetensors").metadata["size"] == "8"
