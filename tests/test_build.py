"""Every mistake a user can make on the command line ends in a message that names the key, before data is read."""

import re
from dataclasses import asdict

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tests.conftest import Compose

from nst import build
from nst.config import ExportConfig
from nst.errors import CONFIGS, explain

MISTAKES = {
    # override: what the message must hold
    "trainer.epoch=3": ("trainer.epoch", "trainer.epochs"),
    "trainer.epochs=abc": ("trainer.epochs", "abc", "Integer"),
    "trainer.epochs=0": ("trainer.epochs=0", "at least 1"),
    "modle=resnet8": ("modle", "model"),
    "model=resnet21": ("model/resnet21", "resnet20"),
    "experiment=paper/cifar10/nst_polly": ("nst_polly", "nst_poly"),
    "experiment=nonsense": ("nonsense",),
    "loss=nst_ploy": ("loss/nst_ploy", "nst_poly"),
    "loss=[kd,nst_ploy]": ("nst_ploy", "nst_poly"),
    "loss.nst_poly.wieght=3": ("wieght", "loss.nst_poly.weight"),
    "loss.nst_poly.weight=-3": ("loss.nst_poly.weight=-3", "0 or more"),
    "loss.nst_poly.weight=abc": ("loss.nst_poly.weight='abc'", "number"),
    "loss.nst_poly.weight=nan": ("loss.nst_poly.weight=nan", "finite"),
    "loss.nst_poly.kernel=poly": ("loss.nst_poly", "'poly'", "polynomial"),
    "loss.nst_poly.convention=papr": ("loss.nst_poly", "papr", "paper"),
    "loss.nst_poly._target_=nst.losses.MMD": ("loss.nst_poly", "nst.losses.MMD"),
    "loss.nst_poly.taps=[{teacher:last,student:layer3.1.bn5}]": ("loss.nst_poly.taps", "layer3.1.bn5", "layer3.0.bn2"),
    "loss.nst_poly.taps=[{teacher:lastt,student:last}]": ("loss.nst_poly.taps", "lastt", "last"),
    "loss.nst_poly.taps=[{teachr:last,student:last}]": ("loss.nst_poly.taps", "teachr", "teacher: last"),
    "loss.nst_poly.taps=[{teacher:fc,student:last}]": ("loss.nst_poly", "'fc'", "(C, H, W)"),
    "teacher=none": ("loss.nst_poly", "teacher=none", "loss=ce"),
    "teacher.model.num_classes=100": ("teacher.model.num_classes=100", "data.num_classes=10"),
    "+model.depth=3": ("model", "depth"),
    "model._target_=torch.relu": ("model",),
    "optim.schedule=cosin": ("optim.schedule=cosin", "cosine"),
    "optim.milestones=[100,150]": ("optim.milestones", "fractions", "[0.5,0.75]"),
    "optim.lr=-1": ("optim.lr=-1", "at least 0"),
    "trainer.precision=fp16": ("trainer.precision=fp16", "bf16"),
    "trainer.checkpoint_every=5": ("trainer.checkpoint_every=5", "500 steps"),
    "trainer.clip_grad_norm=0": ("trainer.clip_grad_norm=0", "positive"),
    "teacher.min_accuracy=101": ("teacher.min_accuracy=101", "percentage"),
    "seed=-1": ("seed=-1", "negative"),
    "~loss.nst_poly.weight": ("loss.nst_poly.weight", "None"),
}


@pytest.mark.parametrize("override", MISTAKES)
def test_mistakes_are_named_with_what_would_be_right(
    override: str, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", override])
    monkeypatch.setattr(build, "dataset", lambda run: pytest.fail("data was read"))
    with pytest.raises((ValueError, HydraException)) as caught:
        build.networks(build.settings(compose(override)))
    message = explain(caught.value)
    assert all(part in message for part in MISTAKES[override]), message


def test_a_value_that_must_be_given_is_named() -> None:
    with pytest.raises(OmegaConfBaseException) as caught:
        _ = OmegaConf.structured(ExportConfig).run
    assert explain(caught.value).startswith("run: nothing is given; say run=…")


def test_a_loss_of_labels_alone_drops_the_teacher(compose: Compose) -> None:
    run = build.settings(compose("loss=ce"))
    assert run.teacher.model is None
    assert build.networks(run).teacher is None


@pytest.mark.parametrize("loss", sorted(p.stem for p in (CONFIGS / "loss").glob("*.yaml")))
def test_every_loss_builds(loss: str, compose: Compose) -> None:
    networks = build.networks(build.settings(compose(f"loss={loss}")))
    names = [term.name for term in networks.distiller.terms]
    assert names[0] == "ce"
    assert len(networks.distiller.requests) == len(names) - 1


def test_losses_add_up_as_lists_and_by_name(compose: Compose) -> None:
    assert compose("loss=[kd,nst_poly]").loss == compose("loss=kd_nst_poly").loss
    assert set(compose("loss=[kd,at]").loss) == {"ce", "kd", "at"}


def test_the_recipe_follows_the_data_and_the_teacher_keeps_its_own(compose: Compose) -> None:
    cfg = compose("data=cifar10", "trainer.epochs=3", "optim.lr=0.5")
    assert (cfg.trainer.epochs, cfg.optim.lr) == (3, 0.5)
    assert (cfg.teacher.recipe.trainer.epochs, cfg.teacher.recipe.optim.lr) == (200, 0.1)


def test_the_student_is_the_seeds_alone(compose: Compose) -> None:
    def weights(*overrides: str) -> torch.Tensor:
        return build.networks(build.settings(compose(*overrides))).distiller.student.state_dict()["conv1.weight"]

    assert torch.equal(weights("seed=1"), weights("seed=1", "loss=kd", "teacher=resnet32"))
    assert not torch.equal(weights("seed=1"), weights("seed=2"))


def test_settings_are_plain_data(compose: Compose) -> None:
    run = build.settings(compose())
    assert re.fullmatch(r"\d+", str(asdict(run)["trainer"]["epochs"]))
    assert isinstance(run.loss["nst_poly"], dict)


@pytest.mark.parametrize("loss", ["nst_poly", "at"])
def test_maps_of_one_position_are_refused(compose: Compose, loss: str) -> None:
    """A ResNet's map of 2×2 is fine on 8×8 images, a VGG's of 1×1 would be a term without gradient."""
    build.networks(build.settings(compose(f"loss={loss}", "model=resnet8")))
    with pytest.raises(
        ValueError, match=rf"loss\.{loss}, teacher layer 'last': maps of 512×1×1 .*taps=.*scripts/layers"
    ):
        build.networks(build.settings(compose(f"loss={loss}", "model=vgg8")))
    build.networks(build.settings(compose("loss=fitnet", "model=vgg8", "teacher=vgg13")))
