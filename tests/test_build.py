"""Every mistake a user can make on the command line ends in a message that names the key, before data is read."""

import random
from dataclasses import asdict

import numpy as np
import pytest
from hydra.errors import HydraException
from tests.conftest import Compose
from tests.kinds import Drawing
from torch import nn

from nst import build
from nst.cli.compose import explain
from nst.config import CONFIGS, RunConfig
from nst.models import resnet8, wrn16_2
from nst.storage.folder import run_folder

OWN = ["loss=ce", "+loss.own.weight=1.0", "+loss.own._target_"]
LBFGS = ["optim._target_=torch.optim.LBFGS", "~optim.momentum", "~optim.nesterov", "~optim.weight_decay"]
MISTAKES = {
    # overrides: what the message must hold
    "+foo=1": ("foo: unknown key",),
    "loss=[kd,nst_ploy]": ("nst_ploy", "nst_poly"),
    "loss.nst_poly.wieght=3": ("wieght", "loss.nst_poly.weight"),
    "loss.nst_poly.weight=-3": ("loss.nst_poly.weight=-3", "0 or more"),
    "~loss.nst_poly.weight": ("loss.nst_poly.weight", "None"),
    "loss.nst_poly.kernel=poly": ("loss.nst_poly", "'poly'", "polynomial"),
    "loss.nst_poly._target_=nst.losses.NSt": ("loss.nst_poly._target_", "has no NSt; did you mean nst.losses.NST?"),
    "loss.nst_poly.layers=[{teacher:last,student:layer3.1.bn5}]": ("loss.nst_poly.layers", "bn5", "layer3.0.bn2"),
    "loss.nst_poly.layers=[{teachr:last,student:last}]": ("loss.nst_poly.layers", "teachr", "teacher: last"),
    "loss.nst_poly.layers=[{teacher:fc,student:last}]": ("loss.nst_poly", "'fc'", "(C, H, W)"),
    "layers=[]": ("layers=[]",),
    "layers={lst:stages}": ("layers.lst: no loss uses this name; did you mean last",),
    "teacher=none": ("loss.nst_poly", "teacher=none", "loss=ce"),
    "teacher.model.num_classes=100": ("teacher.model.num_classes=100", "data.num_classes=10"),
    "teacher.mean=[0.5]": ("teacher.mean=[0.5]: mean and std are needed",),
    "teacher.mean=[0.5,0.5] teacher.std=[1,1]": ("mean and std are needed, of 1 channel",),
    "teacher.batch_statistics=true cache.views=16": ("teacher.batch_statistics=true", "cannot be cached"),
    "+model.depth=3": ("model", "depth"),
    "model._target_=torch.relu": ("model",),
    "schedule.milestones=[100,150]": ("schedule: milestones", "fractions", "[0.5,0.75]"),
    "schedule.gamma=-1": ("schedule: gamma is -1; a factor above 0",),
    "schedule.warmup=1": ("schedule: warmup is 1; a fraction",),
    "optim.lr=-1": ("optim: Invalid learning rate: -1",),
    "optim.momentum=5": ("momentum is 5",),
    "+optim.name=adamw": ("optim: ", "unexpected keyword argument 'name'"),
    "optim.no_decay=[norms]": ("'norms' is none of norm, bias",),
    "optim=adamw optim.betas=[0.9]": ("optim: ", "betas=[0.9]"),
    " ".join(LBFGS): ("closure",),
    "teacher.train.optim.lr=abc": ("teacher.train.optim: lr is 'abc'",),
    "teacher.train.optim=adamw": ("for example optim@teacher.train.optim=adamw",),
    "trainer.checkpoint_every=5": ("trainer.checkpoint_every=5", "500 steps"),
    "trainer.mixup=-1": ("trainer.mixup=-1.0: a number at least 0 is needed",),
    "trainer.cutmix=1 cache.views=16": ("trainer.cutmix: a teacher cache has no mixed images",),
    "cache.dtype=float32": ("cache.dtype is for the teacher cache only; add cache.views=16",),
    "cache.views=4 cache.dtype=bfloat16": ("cache.dtype=bfloat16: one of float16, float32",),
    "+tracker.x._target_=nst.storage.trackers.TensorBoard +tracker.x.y=1": ("tracker.x",),
    f"{' '.join(OWN)}=tests.kinds.Relational trainer.accumulate=2": ("trainer.accumulate=2: loss.own relates all",),
    f"{' '.join(OWN)}=tests.kinds.SeveralLayers +loss.own.layers=[{{teacher:last,student:last,weight:0.5}}]": (
        "loss.own.layers", "a pair cannot have its own weight"
    ),
    f"{' '.join(OWN)}=tests.kinds.Ramped trainer.mixup=1": ("trainer.mixup=1.0: loss.own needs the labels",),
    f"{' '.join(OWN)}=tests.kinds.Remembering trainer.mixup=1": ("trainer.mixup=1.0: loss.own needs the index",),
}  # fmt: skip


def make(run: RunConfig) -> None:
    """All that a run makes before it reads data."""
    build.networks(run)
    build.optimization(run)
    build.trackers(run)
    if run.teacher.model is not None:
        build.optimization(build.teacher_run(run), "teacher.train.")


@pytest.mark.parametrize("overrides", MISTAKES)
def test_mistakes_are_named_with_what_would_be_right(
    overrides: str, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", *overrides.split()])
    monkeypatch.setattr(build, "dataset", lambda run: pytest.fail("data was read"))

    with pytest.raises((ValueError, HydraException)) as caught:
        make(build.settings(compose(*overrides.split())))
    message = explain(caught.value)
    assert all(part in message for part in MISTAKES[overrides]), message


def test_every_loss_builds(compose: Compose) -> None:
    """In one sum; but OFA, whose layers are those of networks with four stages."""
    losses = {path.stem for path in (CONFIGS / "loss").glob("*.yaml")} - {"ofa"}
    distiller = build.networks(build.settings(compose(f"loss=[{','.join(sorted(losses))}]"))).distiller
    assert {term.name for term in distiller.terms} <= losses
    assert len(distiller.target_specs) == sum(len(term.pairs) for term in distiller.terms if term.name != "ce")


def test_the_recipe_follows_the_data_and_the_teacher_keeps_its_own(compose: Compose) -> None:
    cfg = compose("data=cifar10", "trainer.epochs=3", "optim.lr=0.5")
    assert (cfg.trainer.epochs, cfg.optim.lr) == (3, 0.5)
    assert (cfg.teacher.train.epochs, cfg.teacher.train.optim.lr) == (200, 0.1)


def test_what_is_drawn_is_the_seeds_alone(compose: Compose) -> None:
    """By torch, numpy and `random`, whatever the loss and the teacher; their generators go on as before."""

    def drawn(seed: int, *overrides: str) -> tuple[object, ...]:
        drawing = "++loss.drawing={weight: 1, _target_: tests.kinds.Drawing}"
        distiller = build.networks(build.settings(compose(*overrides, drawing, f"seed={seed}"))).distiller
        loss = distiller.losses["drawing:0"]
        assert isinstance(loss, Drawing)
        return loss.made, loss.set_up, distiller.student.state_dict()["conv1.weight"].tolist()

    random.seed(5)
    state = random.getstate()
    first = drawn(2**40, "loss=ce")
    assert random.getstate() == state
    np.random.seed(6)  # noqa: NPY002
    random.seed(6)
    assert drawn(2**40, "loss=kd", "teacher=resnet32") == first
    assert not any(one == other for one, other in zip(drawn(1, "loss=ce"), first, strict=True))


def test_maps_of_one_position_are_refused(compose: Compose) -> None:
    """A ResNet's map of 2×2 is fine on 8×8 images, a VGG's of 1×1 would be a term without gradient."""
    with pytest.raises(ValueError, match=r"loss\.at, teacher layer 'last': .*map is 512×1×1.*nst layers"):
        build.networks(build.settings(compose("loss=at", "model=vgg8")))
    build.networks(build.settings(compose("loss=fitnet", "model=vgg8", "teacher=vgg13")))


def test_layers_are_named_once_for_all_losses(compose: Compose) -> None:
    """Also for a loss whose node has no layers; a loss's own win."""
    pair, at = "[{teacher: stage2, student: stage1}]", "loss.at.layers=[{teacher: last, student: last}]"
    bare = "++loss.bare={weight: 1, _target_: nst.losses.AT}"
    for layers in (pair, f"{{last: {pair}}}"):
        run = build.settings(compose("loss=[kd,at,nst_poly]", bare, f"layers={layers}", at))
        pairs = {term.name: [(p.teacher, p.student) for p in term.pairs] for term in build.terms(run)}
        assert pairs["nst_poly"] == pairs["bare"] == [("stage2", "stage1")]
        assert (pairs["at"], pairs["kd"]) == ([("last", "last")], [("logits", "logits")])
    own = compose("loss=[kd,at,nst_poly]", f"{bare[:-1]}, layers: {pair}}}", f"loss.nst_poly.layers={pair}", at)
    assert run_folder(asdict(build.settings(own))) == run_folder(asdict(run))
    assert "layers" not in build.settings(compose("loss=kd", bare)).loss["bare"]


def test_stages_are_those_that_both_networks_have(compose: Compose) -> None:
    run = build.settings(compose("loss=[at,fitnet]", "loss.at.layers=stages", "loss.fitnet.layers=stages_pre_relu"))
    pairs = {term.name: [p.teacher for p in term.pairs] for term in build.networks(run).distiller.terms}
    assert pairs["at"] == ["stage1", "stage2", "stage3"]
    assert pairs["fitnet"] == ["stage1_pre_relu", "stage2_pre_relu", "stage3_pre_relu"]
    named = compose("loss=[at,fitnet]", "loss.at.layers=stages", "layers={last: stage2, stages: last_pre_relu}")
    pairs = {t.name: [p.teacher for p in t.pairs] for t in build.networks(build.settings(named)).distiller.terms}
    assert (pairs["at"], pairs["fitnet"]) == (["last_pre_relu"], ["stage2"])
    mixed = (
        "loss.at.layers=[{teacher: stages_pre_relu, student: stages, weight: 0.5}, {teacher: pooled, student: pooled}]"
    )
    (term,) = (
        t for t in build.terms(build.settings(compose("loss=at", mixed)), [resnet8(), wrn16_2()]) if t.name == "at"
    )
    assert [(p.teacher, p.student, p.weight) for p in term.pairs] == [
        *((f"stage{k}_pre_relu", f"stage{k}", 0.5) for k in (1, 2, 3)), ("pooled", "pooled", 1.0)
    ]  # fmt: skip
    half = build.settings(compose("loss=at"))
    half.loss["at"]["layers"] = [{"teacher": "stages", "student": "last"}]
    with pytest.raises(ValueError, match=r"no stages \(teacher\) and last in common"):
        build.terms(half)


def test_networks_that_cannot_be_used_are_named(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters of another type; a teacher whose output depends on its batch, cached."""
    model = resnet8(num_classes=10, in_channels=1).double()
    monkeypatch.setattr(build, "network", lambda *_: model)
    with pytest.raises(ValueError, match=r"student.*its parameter conv1\.weight is torch\.float64"):
        build.networks(build.settings(compose(*tiny, "loss=ce")))
    model.float().set_submodule("bn1", nn.BatchNorm2d(16, track_running_stats=False))
    with pytest.raises(ValueError, match=r"its bn1 has no running statistics: use cache.views=0"):
        build.networks(build.settings(compose(*tiny, "loss=kd", "cache.views=16")))
