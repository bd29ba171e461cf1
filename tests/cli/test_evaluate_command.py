"""`nst evaluate` of a finished run and of weights; `nst predict`: what cannot be is said in words."""

import itertools
import json
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.conftest import Nst
from tests.conftest import Compose
from tests.data.samples import write_tree

from nst.cli.train import run


@pytest.fixture
def finished(compose: Compose, tiny: list[str]) -> tuple[Path, float]:
    """A run's folder and its accuracy."""
    summary = run(compose(*tiny, "teacher=none", "loss=ce", "trainer.epochs=1"))
    return Path(summary["folder"]), summary["test"]["top1"]


def test_a_run_brings_all_that_its_evaluation_needs(nst: Nst, finished: tuple[Path, float]) -> None:
    folder, top1 = finished
    said = nst("evaluate", f"run={folder}")
    assert said.status == 0, said.err
    assert f"on 360 test images of digits: top-1 {top1:.2f} %, top-5" in said.out
    same = nst("evaluate", "model=resnet8", f"weights={folder}/student.safetensors", "data=digits")
    assert same.out.splitlines() == said.out.splitlines()[:2]
    report = json.loads((folder / "evaluation.json").read_text())
    assert sum(sum(row) for row in report["confusion"]) == 360
    assert sum(report["confusion"][k][k] for k in range(10)) / 3.6 == pytest.approx(top1)
    summary = json.loads((folder / "summary.json").read_text())
    summary["test"]["top1"] = 99.0
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "; the run itself measured top-1 99.00 %" in nst("evaluate", f"run={folder}").out
    assert "on 40 train images" in nst("evaluate", f"run={folder}", "split=train").out
    assert f"{folder}/best.safetensors) on 360 test images" in nst("evaluate", f"run={folder}", "weights=best").out


def photographs(folder: Path, classes: tuple[str, str]) -> Path:
    """Photographs of two classes of these names."""
    write_tree(folder, classes=2)
    for part, (label, name) in itertools.product(("train", "val"), enumerate(classes)):
        (folder / part / f"class{label}").rename(folder / part / name)
    return folder


def test_the_classes_of_other_images_must_be_those_of_training(
    nst: Nst, compose: Compose, tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = ["data=folder", "data.num_classes=2", "data.size=16"]
    names = [*kind, f"data.root={photographs(tmp_path / 'ours', ('cat', 'dog'))}"]
    recipe = ["data.limit=null", "trainer.batch_size=2", "trainer.epochs=1"]
    folder = run(compose(*tiny, *names, *recipe, "teacher=none", "loss=ce"))["folder"]
    assert "on 6 test images" in nst("evaluate", f"run={folder}", *names).out
    others = photographs(tmp_path / "theirs", ("bird", "cat"))
    said = nst("evaluate", f"run={folder}", *kind, f"data.root={others}").error
    assert "its class 0 is 'cat', here 'bird'; give" in said
    spelled = nst("evaluate", f"run={folder}", *kind, f"data.root={photographs(tmp_path / 'more', ('cats', 'dogs'))}")
    assert spelled.status == 0
    assert "spelled otherwise than in the training of" in caplog.text
    for part in ("train", "val"):
        (tmp_path / "ours" / part / "cat").rename(tmp_path / "ours" / part / "the cat")
    assert "its class 0 is 'cat', here 'dog'" in nst("export", f"run={folder}").error


def test_predictions_of_a_run_name_classes_by_number_where_they_have_no_names(
    nst: Nst, finished: tuple[Path, float], tmp_path: Path
) -> None:
    images = tmp_path / "scans"
    images.mkdir()
    for i, size in enumerate([(8, 8), (30, 17), (5, 90)]):
        Image.new("RGB", size, (40 * i, 90, 20)).save(images / f"{i}.png")
    (images / "notes.txt").write_text("no image")
    said = nst("predict", f"model={finished[0]}", "images=scans", "top=2")
    assert said.status == 0, said.err
    header, *rows = [line.split(",") for line in said.out.splitlines()]
    assert header == ["image", "rank", "class", "probability"]
    assert [row[:2] for row in rows] == [[f"{i}.png", rank] for i in range(3) for rank in "12"]
    assert all(row[2] in "0123456789" and 0 <= float(row[3]) <= 1 for row in rows)
    one = nst("predict", f"model={finished[0]}", "images=scans/1.png", "top=2")
    assert one.out.splitlines() == [line for line in said.out.splitlines() if line.startswith(("image", "1.png"))]
    (images / "3.png").write_bytes(b"damaged")
    assert "3.png: the image cannot be decoded" in nst("predict", f"model={finished[0]}", "images=scans").error


WEIGHTS = "evaluate weights=x model=resnet8 data=digits"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("evaluate run=nowhere", "run=nowhere: no such folder"),
        ("evaluate run=nowhere model=resnet8", "run=nowhere has its own model and weights"),
        ("evaluate weights=x model=resnet8", "pass run=FOLDER, or model=… weights=FILE data=…"),
        (WEIGHTS, "weights file x does not exist"),
        (f"{WEIGHTS} batch_size=0", "batch_size=0: a number at least 1"),
        (f"{WEIGHTS} mean=[nan] std=[1]", "mean[0]=nan"),
        (f"{WEIGHTS} model.num_classes=7", "model.num_classes=7, but data.num_classes=10"),
        (f"{WEIGHTS} root=y", "pass data.root=y"),
        ("evaluate run=x data=digits root=y", "root=y is for the run's own data"),
        ("predict model=x", "`images` is required: pass images=…"),
        ("predict model=x images=nowhere", "images=nowhere: no such folder"),
        ("predict model=x images=.", "only the folder itself is read: images=pictures"),
        ("predict model=nowhere images=pictures", "model=nowhere: no such folder; pass a run's folder, or its export/"),
        ("predict model=pictures images=pictures", "model=pictures: is neither an export nor a finished run"),
        ("predict model=x images=. top=0", "top=0: a number at least 1"),
    ],
)
def test_what_cannot_be_evaluated_or_predicted(line: str, told: str, nst: Nst, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "a.jpg")
    assert told in nst(*line.split()).error
