"""A student that learns features alone: no term needs labels or logits."""

import json
import shlex
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from tests.conftest import ROOT, TINY, Compose
from tests.faults.small import Small
from tests.outcome import rows
from torch import Tensor

from nst import build
from nst.cli.train import next_command, run
from nst.config import EvaluateConfig, ExportConfig, TrainerConfig
from nst.dist import Dist
from nst.distiller import Distiller, Term
from nst.evaluate import feature_evaluation
from nst.export import export, finished_run
from nst.export.formats import load
from nst.export.inference import classifier
from nst.finished import evaluate_weights
from nst.layers import LayerHooks, Pair, feature_shapes
from nst.losses import AT, RKD, FitNet
from nst.models import resnet8
from nst.models.parts import NoClassifier
from nst.models.weights import save_weights
from nst.tables.listing import list_runs
from nst.teacher import LiveTeacher

ONE = Dist(0, 1, torch.device("cpu"))
FEATURES = ["loss=[at,fitnet]", "loss.ce.weight=0", "trainer.clip_grad_norm=0.1"]
UNTRAINED = ["teacher.weights=null", "data.num_classes=10", "teacher.model.num_classes=10"]


@pytest.fixture
def unlabelled(tmp_path: Path) -> list[str]:
    """Overrides: 40 grey images in a folder and one below it, and a teacher's file."""
    draw, folder = np.random.default_rng(0), tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for number in range(40):
        image = Image.fromarray(draw.integers(0, 255, (12, 12), dtype=np.uint8))
        image.save(folder / ("deeper" if number % 2 else ".") / f"{number}.png")
    torch.manual_seed(0)
    save_weights(tmp_path / "teacher.safetensors", resnet8(num_classes=7, in_channels=1))
    return [
        "data=images", f"data.path={folder}", "data.size=8", "data.channels=1", "data.mean=[0.5]", "data.std=[0.3]",
        f"teacher.weights={tmp_path}/teacher.safetensors", "teacher.model.num_classes=7", "trainer.workers=0", "~data.limit",
    ]  # fmt: skip


def test_a_run_without_labels_is_judged_by_its_terms_on_held_out_images(
    compose: Compose, tiny: list[str], unlabelled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for word in tiny if not word.startswith(("data.", "teacher.min"))] + unlabelled[:-1]
    summary = run(compose(*settings, *FEATURES))
    events, test, best = rows(Path(summary["folder"])), summary["test"], summary["best"]
    evaluations = [event for event in events if event["kind"] == "eval"]
    for event in evaluations:
        assert event["loss"] == pytest.approx(event["weighted/at"] + event["weighted/fitnet"])
    assert best == {"loss": min(event["loss"] for event in evaluations), "epoch": best["epoch"]}
    assert (test["top1"], test["knn"], test["images"]) == (None, None, 4)  # a tenth of the images
    assert not any("top1" in event for event in events)
    assert summary["student"]["left_out"] == ["fc"]
    kept = finished_run(summary["folder"]).student().state_dict()
    assert set(resnet8().state_dict()) - set(kept) == {"fc.weight", "fc.bias"}
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"without classifier: loss {test['loss']:.4g}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=at"], "data=images: its images have no labels, but loss.ce needs labels or logits: loss.ce.weight=0"),
        (["loss=[kd,at]", "loss.ce.weight=0"], "loss.kd needs labels or logits"),
        (["loss=fitnet", "loss.ce.weight=0", "layers=logit_map"], "loss.fitnet needs labels or logits"),
        ([*FEATURES, *UNTRAINED], "without labels no teacher can be trained"),
    ],
)
def test_what_needs_labels_is_named(compose: Compose, unlabelled: list[str], words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(compose("model=resnet8", "teacher=resnet8", *unlabelled[:-1], *words))


def maps(network: Small, images: Tensor) -> Tensor:
    return network.relu(network.bn(network.conv(images)))


def test_terms_and_neighbours_by_hand(compose: Compose) -> None:
    """And an evaluation leaves no trace: no hook, the same values again."""
    data, pair = build.dataset(build.settings(compose("loss=ce"))), (Pair("last", "last"),)
    torch.manual_seed(0)
    student, teacher = Small(5, 1).eval(), Small(5, 1).eval()
    terms = [Term("at", AT(), 3.0, pair), Term("fitnet", FitNet(), 2.0, pair), Term("rkd", RKD(), 0.5, pair)]
    distiller = Distiller(student, terms, *(feature_shapes(net, ["last"], (1, 8, 8)) for net in (student, teacher)))
    live = LiveTeacher(teacher, distiller.target_specs)
    evaluation = feature_evaluation(distiller, live, data, ONE, TrainerConfig(eval_batch_size=100))
    found = evaluation("test")
    assert evaluation("test") == found
    assert sum(len(m._forward_hooks) for m in teacher.modules()) == 1  # of the run's own LiveTeacher
    train, images = (
        part.render(torch.arange(len(part)), torch.full((len(part),), part.unaugmented))
        for part in (data.train, data.test)
    )
    sums = dict.fromkeys(("at", "fitnet", "rkd"), 0.0)
    with torch.no_grad():
        for part in images.split(90):  # four batches
            own, known = maps(student, part), maps(teacher, part)
            for term in terms:
                loss = distiller.losses[f"{term.name}:0"]
                sums[term.name] += term.weight * float(loss(own, loss.target(known, own.shape[1:]))) / 4
        known, asked = (maps(student, x).mean((2, 3)) for x in (train, images))
    assert {f"weighted/{name}": pytest.approx(value, rel=1e-5) for name, value in sums.items()} == found.others
    assert found.loss == pytest.approx(sum(sums.values()), rel=1e-5)
    assert (found.images, found.top1, found.measure) == (360, None, "knn")
    neighbours = KNeighborsClassifier(20, metric="cosine").fit(known, data.train.labels)
    assert found.knn == pytest.approx(100 * neighbours.score(asked, data.test.labels), abs=1e-9)


NETWORKS = ["resnet8", "vgg8", "shufflenet_v2"]
NETWORKS += ["torchvision model.arch=squeezenet1_1", "timm model.arch=deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize("words", NETWORKS)
def test_layers_stay_without_the_classifier(compose: Compose, words: str) -> None:
    """Names, shapes and values; the output is what the classifier saw. DeiT has two classifiers, SqueezeNet's is a convolution."""
    settings = compose(*f"model={words}".split(), "data=cifar10", "data.num_classes=7", "teacher=none", "loss=ce")
    node = OmegaConf.to_container(settings.model, resolve=True)
    whole, features = (build.network("model", node | only, 0).eval() for only in ({}, {"features_only": True}))
    assert whole.named_layers == features.named_layers
    layers, images = list(whole.named_layers), torch.randn(2, 3, 32, 32)
    hooks = [LayerHooks(network, layers) for network in (whole, features)]
    with torch.no_grad():
        logits, output = whole(images), features(images)
    expected, found = (hook.read() for hook in hooks)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    if "pooled" in expected and "distilled" not in words:
        torch.testing.assert_close(output, expected["pooled"].flatten(1), rtol=0, atol=0)
    assert logits.shape == (2, 7)
    assert output.ndim == 2
    left_out = [name for name, module in features.named_modules() if isinstance(module, NoClassifier)]
    kept = {name for name in whole.state_dict() if name.rpartition(".")[0] not in left_out}
    assert set(features.state_dict()) == kept
    assert len(left_out) == (2 if "distilled" in words else 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small run with labelled images."""
    outputs = f"outputs={tmp_path_factory.mktemp('features')}/outputs"
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return run(hydra.compose("config", [*TINY, *FEATURES, outputs]))["folder"]


def test_an_evaluation_gives_neighbours_and_a_linear_probe(finished: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By which runs are listed, too."""
    report = evaluate_weights(EvaluateConfig(run=finished))
    summary = json.loads((Path(finished) / "summary.json").read_text())
    assert report["knn"] == summary["test"]["knn"]
    assert report["linear_probe"] > 20  # of ten classes, with features of two epochs
    assert f"linear probe {report['linear_probe']:.2f} %" in capsys.readouterr().out
    list_runs([f"outputs={Path(finished).parents[3]}", "each=true"])
    assert "features alone, by k-NN" in capsys.readouterr().out


def test_an_export_is_a_backbone(finished: str, tmp_path: Path) -> None:
    report = export(ExportConfig(run=finished, to=str(tmp_path), images=20, repeats=1))
    about, card = json.loads((tmp_path / "model.json").read_text()), (tmp_path / "MODEL_CARD.md").read_text()
    assert about["output"] == {"shape": ["batch", 64], "values": "features"}
    assert report["files"]["onnx"]["max_difference"] < 1e-4
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = finished_run(finished).student()(images)
        for name in ("safetensors", "torch", "onnx"):
            torch.testing.assert_close(load(tmp_path, name)(images), expected, rtol=1e-4, atol=1e-4)
    assert "A backbone without classifier" in card
    assert "top-1" not in card.partition("## Files and cost")[2].partition("## Limits")[0]
    for folder in (finished, tmp_path):
        with pytest.raises(ValueError, match="its student gives features, not classes"):
            classifier(folder)


def test_the_next_command_fine_tunes(
    compose: Compose, tiny: list[str], finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is composed as it stands, and starts from the student."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # nothing typed before
    words = shlex.split(next_command(build.settings(compose(*tiny, *FEATURES)), finished, ["fc"]))
    assert words[:2] == ["nst", "train"]
    settings = build.settings(compose("model=resnet8", *words[2:]))
    student = build.networks(settings).distiller.student.state_dict()
    kept = finished_run(finished).student().state_dict()
    assert all(torch.equal(student[name], value) for name, value in kept.items())
    assert set(student) - set(kept) == {"fc.weight", "fc.bias"}
