"""Results that need the trained networks, computed once and saved as small files for the report.

MMD between teacher and student before and after training, heat maps of single neurons (paper, Figure 2), and the
channels of both networks laid out by t-SNE (paper, Figure 5).
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.manifold import TSNE
from torch import Tensor, nn
from torch.nn import functional as F

from nst import build
from nst.build import teacher_run
from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.files import sha256_of, write_whole
from nst.layers import LayerHooks, resolve
from nst.losses import NST
from nst.models.weights import load_weights
from nst.report.runs import read_json
from nst.reproduce.execute import dataset
from nst.reproduce.plan import Cell, Plan, finished
from nst.reproduce.table import Group
from nst.runs.folder import STUDENT, run_folder
from nst.runs.heatmaps import heatmaps
from nst.teacher import Normalization
from nst.teacher.prepare import expected_normalization

IMAGES = 256  # for MMD
SHOWN = 4  # images of the heat maps
FORM = 2  # of the files; another one is made anew
KERNELS = ("linear", "polynomial", "gaussian")


def gather(plan: Plan, device: torch.device) -> None:
    """Write `evidence/<group>.json` and its pictures for every group; what is there for the same runs is kept."""
    sets: dict[str, Dataset] = {}
    for group in plan.table.groups:
        cells = [cell for cell in plan.cells if cell.group is group]
        runs = [f"{cell.row.name} {mark(run)}" for cell in cells for run in cell.runs if finished(run)]
        taught = [run for cell in cells for run in cell.runs if run.teacher.model is not None and finished(run)]
        file = plan.folder / "evidence" / f"{group.name}.json"
        subject = {"form": FORM, "layers": asdict(group.layers), "runs": runs}
        if _is_current(file, subject):
            continue
        _remove_outdated(file, subject, ["teacher", *(cell.row.name for cell in cells)])
        if not taught:
            continue
        # where it lies now: a path in a summary is of the folder that the run was started in
        weights = taught[0].teacher.weights or str(run_folder(asdict(teacher_run(taught[0]))) / STUDENT)
        if not Path(weights).is_file():
            print(f"{group.title}: the teacher's weights {weights} are missing, so the networks are not evaluated")
            continue
        print(f"evaluating the networks of {group.title}", flush=True)
        try:
            content, pictures = _evidence(Analysis(group, taught[0], weights, dataset(taught[0], sets), device), cells)
        except ValueError as error:  # a network of one's own may lack the layer, or its features have no channels
            print(f"{group.title}: the networks are not evaluated: {error}", flush=True)
            continue
        for name, picture in pictures.items():
            write_whole(file.with_name(f"{group.name}-{name}.png"), picture)
        write_whole(file, json.dumps({**subject, **content}, indent=1).encode())


def missing_layers(plan: Plan) -> Iterator[str]:
    """For each network of runs to do that lacks the layer of its group's `layers`: a line saying that it will not be evaluated.

    Raises:
        ValueError: a network that cannot be built.
    """
    for group in plan.table.groups:
        runs = [run for cell in plan.cells if cell.group is group for run in cell.runs]
        run = next((run for run in runs if run.teacher.model is not None and not finished(run)), None)
        if run is None:
            continue
        sides = {"teacher": ("teacher.model", run.teacher.model), "student": ("model", run.model)}
        for side, (key, node) in sides.items():
            layer, model = getattr(group.layers, side), build.network(key, build.without_weights(node), seed=0)
            try:
                resolve(model, layer)
            except ValueError as error:
                yield (
                    f"{group.title}: the networks will not be evaluated: layers.{side}={layer} of {group.name} in the table's "
                    f"file: {error}"
                )


def _is_current(file: Path, subject: dict[str, Any]) -> bool:
    """Whether the file is of these runs and layers, and in the current format."""
    evidence = read_json(file) if file.exists() else {}
    return {key: evidence.get(key) for key in subject} == subject


def _remove_outdated(file: Path, subject: dict[str, Any], names: list[str]) -> None:
    """Remove evidence of other layers, or of runs that are no longer there: the page would show it as that of the present runs."""
    evidence = read_json(file) if file.exists() else {}
    same = all(evidence.get(key) == subject[key] for key in ("form", "layers"))
    if not (same and {*(evidence.get("runs") or [])} <= {*subject["runs"]}):
        for outdated in (file, *(file.with_name(f"{file.stem}-{name}.png") for name in names)):
            outdated.unlink(missing_ok=True)


def _evidence(analysis: "Analysis", cells: list[Cell]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The results: numbers, and pictures by name."""
    content = {"images": len(analysis.images), "mmd": mmd(analysis, cells), "tsne": tsne(analysis, cells)}
    return content, neurons(analysis, cells)


def mark(run: RunConfig) -> str:
    """A finished run, identified by its summary."""
    folder = run_folder(asdict(run))
    return f"{folder.name} {sha256_of(folder / 'summary.json')[:16]}"


class Analysis:
    """A group's teacher, some test images, and the features of any network on them."""

    def __init__(self, group: Group, run: RunConfig, weights: str, data: Dataset, device: torch.device) -> None:
        self.group, self.device, self.data = group, device, data
        self.images, self.labels = first_images(data, device)
        self.normalization = Normalization(data.mean, data.std)
        self.teacher = build.network("teacher.model", run.teacher.model, run.teacher.seed)
        metadata = load_weights(self.teacher, weights)
        self.teacher.to(device).eval()
        self.expects = expected_normalization(run.teacher.mean, run.teacher.std, metadata) or self.normalization
        scale, shift = (torch.tensor(v).view(1, -1, 1, 1) for v in self.normalization.onto(self.expects))
        self.teacher_images = self.images * scale + shift
        self.teacher_features = self.features(self.teacher, self.teacher_images, group.layers.teacher)

    @torch.no_grad()
    def features(self, model: nn.Module, images: Tensor, layer: str) -> Tensor:
        """Features `[N, C, H, W]` of a network in `eval()` mode, on the CPU."""
        recorder = LayerHooks(model, [layer])
        found = []
        try:
            for part in images.split(64):
                model.eval()(part.to(self.device))
                found.append(recorder.read()[layer].float().cpu())
        finally:
            recorder.remove()
        return torch.cat(found)

    def student(self, run: RunConfig, trained: bool) -> nn.Module:
        """The student of a run, before or after its training."""
        model = build.network("model", run.model, run.seed)
        if trained:
            load_weights(model, run_folder(asdict(run)) / STUDENT)
        return model.to(self.device)

    def student_features(self, run: RunConfig, trained: bool) -> Tensor:
        """Its features on the images."""
        return self.features(self.student(run, trained), self.images, self.group.layers.student)


def first_images(data: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first test images `[N, C, H, W]`, normalised, and their labels `[N]`, on the CPU."""
    batches: Iterator[Any] = iter(data.split("test").loader(64, train=False, device=device).epoch(0))
    found = [(batch.images.cpu(), batch.labels.cpu()) for _, batch in zip(range(IMAGES // 64), batches, strict=False)]
    images, labels = zip(*found, strict=True)
    return torch.cat(images), torch.cat(labels)


def mmd(analysis: Analysis, cells: list[Cell]) -> dict[str, Any]:
    """Row → kernel → MMD² (mean over the images) of each seed's student, untrained and trained."""
    distances: dict[str, Any] = {}
    for cell in cells:
        runs = [run for run in cell.runs if finished(run)]
        values: dict[str, Any] = {kernel: {"before": [], "after": []} for kernel in KERNELS}
        for run in runs:
            for when, trained in (("before", False), ("after", True)):
                features = analysis.student_features(run, trained)
                for kernel in KERNELS:
                    values[kernel][when].append(distance(analysis.teacher_features, features, kernel))
        distances[cell.row.name] = values
    return distances


def distance(teacher: Tensor, student: Tensor, kernel: Any) -> float:
    """MMD² of the paper's eq. 4, without weight or ½, mean over images `[N, C, H, W]`."""
    loss, total = NST(kernel), 0.0
    for t, s in zip(teacher.split(16), student.split(16), strict=True):
        total += 2 * float(loss(s, loss.target(t, tuple(s.shape[1:])))) * len(s)
    return round(total / len(student), 8)


def chosen(cells: list[Cell]) -> list[Cell]:
    """The rows that the figures compare: the baseline and one NST, where they are finished."""
    nst = [cell for cell in cells[1:] if any(name.startswith("nst") for name in cell.runs[0].loss)]
    preferred = sorted(nst, key=lambda cell: cell.row.name not in ("nst_poly", "nst"))[:1]
    return [cell for cell in [*cells[:1], *preferred] if finished(cell.runs[0])]


def tsne(analysis: Analysis, cells: list[Cell]) -> dict[str, Any]:
    """Row → coordinates of the teacher's and the student's unit channel maps on the first test image, laid out jointly."""
    places: dict[str, Any] = {}
    for cell in chosen(cells):
        student = analysis.student_features(cell.runs[0], trained=True)[:1]
        teacher = analysis.teacher_features[:1]
        if teacher.shape[2:] != student.shape[2:]:
            teacher = F.interpolate(teacher, student.shape[2:], mode="bilinear", align_corners=False)
        sides = [unit_maps(teacher), unit_maps(student)]
        points = np.concatenate(sides)
        place = TSNE(perplexity=min(30, (len(points) - 1) // 3), init="pca", random_state=0).fit_transform(points)
        first, second = np.round(place[: len(sides[0])], 2), np.round(place[len(sides[0]) :], 2)
        places[cell.row.name] = {"teacher": first.tolist(), "student": second.tolist()}
    return places


def unit_maps(feature: Tensor) -> np.ndarray:
    """`[1, C, H, W]` → the maps of the channels that are not zero, each of length 1: `[≤ C, H·W]`."""
    maps = feature[0].flatten(1)
    return F.normalize(maps[maps.norm(dim=1) > 0], dim=1).numpy()


def neurons(analysis: Analysis, cells: list[Cell]) -> dict[str, bytes]:
    """Heat maps of the teacher's most active neurons of the last stage and of the nearest ones of the students, as PNG."""
    images = analysis.images[:SHOWN].to(analysis.device)
    networks = {"teacher": (analysis.teacher, analysis.teacher_images[:SHOWN].to(analysis.device))}
    networks |= {cell.row.name: (analysis.student(cell.runs[0], trained=True), images) for cell in chosen(cells)}
    classes, labels = analysis.data.classes, analysis.labels[:SHOWN].tolist()
    names = [f"class {label}" if classes is None else classes[label] for label in labels]
    grids = heatmaps(images, networks, analysis.normalization, labels=names)
    return {name.removeprefix("neurons/"): png(grid) for name, grid in grids.items()}


def png(picture: Tensor) -> bytes:
    """`[3, H, W]` in 0…1 as a PNG file."""
    file = io.BytesIO()
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()
