"""Results that need the trained networks, computed once and saved as small files for the page.

MMD between teacher and student before and after training, heat maps of single neurons (paper, Figure 2), and the
channels of both networks laid out by t-SNE (paper, Figure 5).
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
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
from nst.files import sha256_of, write_whole
from nst.layers import LayerHooks, resolve
from nst.losses import NST
from nst.models.weights import load_weights
from nst.report.heatmaps import heatmaps
from nst.storage.folder import STUDENT, SUMMARY
from nst.tables.file import Group
from nst.tables.plan import Cell, Plan, finished, folder_of
from nst.teacher import Normalization, expected_normalization

IMAGES = 256  # for MMD
SHOWN = 4  # images of the heat maps
DRAWN = 3  # methods of the heat maps and of t-SNE, beside the baseline
FORM = 3  # of the files; another one is made anew
KERNELS = ("linear", "polynomial", "gaussian")


def gather(plan: Plan, device: torch.device) -> None:
    """Write `evidence/<group>.json` and its pictures for every group; what is there for the same runs is kept."""
    for group in plan.table.groups:
        cells = [cell for cell in plan.cells if cell.group is group]
        done = [(cell, run) for cell in cells for run in cell.runs if finished(run)]
        runs = [f"{c.row.name} {folder_of(r).name} {sha256_of(folder_of(r) / SUMMARY)[:16]}" for c, r in done]
        subject = {"form": FORM, "layers": asdict(group.layers), "runs": runs}
        file = plan.request.folder / "evidence" / f"{group.name}.json"
        earlier = json.loads(file.read_bytes()) if file.exists() else {}
        if all(earlier.get(key) == value for key, value in subject.items()):
            continue
        for outdated in (
            file,
            *(file.with_name(f"{group.name}-{n}.png") for n in ("teacher", *(c.row.name for c in cells))),
        ):
            outdated.unlink(missing_ok=True)  # the page would show it as that of the present runs
        taught = next((run for _, run in done if run.teacher.model is not None), None)
        if taught is None:
            continue
        # where it lies now: a path in a summary is of the folder that the run was started in
        weights = taught.teacher.weights or str(folder_of(teacher_run(taught)) / STUDENT)
        if not Path(weights).is_file():
            print(f"{group.title}: the teacher's weights {weights} are missing, so the networks are not evaluated")
            continue
        print(f"evaluating the networks of {group.title}", flush=True)
        try:
            analysis = Analysis(group, taught, weights, device)
            content = {"images": len(analysis.images), "mmd": mmd(analysis, cells), "tsne": tsne(analysis, cells)}
            pictures = neurons(analysis, cells)
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
        for side, key, node in (("teacher", "teacher.model", run.teacher.model), ("student", "model", run.model)):
            layer, model = getattr(group.layers, side), build.network(key, build.without_weights(node), seed=0)
            try:
                resolve(model, layer)
            except ValueError as error:
                yield (
                    f"{group.title}: the networks will not be evaluated: layers.{side}={layer} of {group.name} in the table's "
                    f"file: {error}"
                )


class Analysis:
    """A group's teacher, some test images, and the features of any network on them."""

    def __init__(self, group: Group, run: RunConfig, weights: str, device: torch.device) -> None:
        """Load the teacher of `run` from `weights`, and the first test images `[N, C, H, W]`, normalised, on the CPU."""
        data = build.dataset(run)
        self.group, self.device = group, device
        batches = [*islice(data.split("test").loader(64, train=False, device=device).epoch(0), IMAGES // 64)]
        self.images = torch.cat([batch.images.cpu() for batch in batches])
        numbers = torch.cat([batch.labels.cpu() for batch in batches])[:SHOWN].tolist()
        self.labels = [f"class {number}" if data.classes is None else data.classes[number] for number in numbers]
        self.normalization = Normalization(data.mean, data.std)
        self.teacher = build.network("teacher.model", run.teacher.model, run.teacher.seed)
        metadata = load_weights(self.teacher, weights, run.teacher.weights_key)
        self.teacher.to(device).eval()
        expects = expected_normalization(run.teacher.mean, run.teacher.std, metadata) or self.normalization
        scale, shift = (torch.tensor(v).view(1, -1, 1, 1) for v in self.normalization.onto(expects))
        self.teacher_images = self.images * scale + shift
        self.teacher_features = self.features(self.teacher, self.teacher_images, group.layers.teacher)

    @torch.no_grad()
    def features(self, model: nn.Module, images: Tensor, layer: str) -> Tensor:
        """Features `[N, C, H, W]` of a network in `eval()` mode, on the CPU."""
        hooks, found = LayerHooks(model, [layer]), []
        try:
            for part in images.split(64):
                model.eval()(part.to(self.device))
                found.append(hooks.read()[layer].float().cpu())
        finally:
            hooks.remove()
        return torch.cat(found)

    def student(self, run: RunConfig, trained: bool = True) -> nn.Module:
        """The student of a run, before or after its training."""
        model = build.network("model", run.model, run.seed)
        if trained:
            load_weights(model, folder_of(run) / STUDENT)
        return model.to(self.device)

    def student_features(self, run: RunConfig, trained: bool = True) -> Tensor:
        """Its features on the images."""
        return self.features(self.student(run, trained), self.images, self.group.layers.student)


def mmd(analysis: Analysis, cells: list[Cell]) -> dict[str, Any]:
    """Row → kernel → MMD² of each seed's student, untrained and trained: the paper's eq. 4, mean over the images."""
    distances: dict[str, Any] = {}
    for cell in cells:
        values: dict[str, Any] = {kernel: {"before": [], "after": []} for kernel in KERNELS}
        for run in (run for run in cell.runs if finished(run)):
            for when, trained in (("before", False), ("after", True)):
                features = analysis.student_features(run, trained)
                for kernel in KERNELS:
                    loss, total = NST(kernel), 0.0
                    for t, s in zip(analysis.teacher_features.split(16), features.split(16), strict=True):
                        total += 2 * float(loss(s, loss.target(t, tuple(s.shape[1:])))) * len(s)  # the loss has ½ of it
                    values[kernel][when].append(round(total / len(features), 8))
        distances[cell.row.name] = values
    return distances


def chosen(cells: list[Cell]) -> list[Cell]:
    """The rows that the pictures compare: the baseline and a few methods that are there, those with NST first."""
    done = [cell for cell in cells if finished(cell.runs[0])]
    methods = [cell for cell in done if cell is not cells[0]]
    methods.sort(key=lambda cell: not any(name.startswith("nst") for name in cell.runs[0].loss))
    alone = [cell for cell in methods if len(cell.runs[0].loss) <= 2]  # the cross-entropy and one more
    return [cell for cell in done if cell is cells[0] or cell in (alone or methods)[:DRAWN]]


def tsne(analysis: Analysis, cells: list[Cell]) -> dict[str, Any]:
    """Row → coordinates of the teacher's and the student's unit channel maps on the first test image, laid out jointly."""
    places: dict[str, Any] = {}
    for cell in chosen(cells):
        student = analysis.student_features(cell.runs[0])[:1]
        teacher = analysis.teacher_features[:1]
        if teacher.shape[2:] != student.shape[2:]:
            teacher = F.interpolate(teacher, student.shape[2:], mode="bilinear", align_corners=False)
        maps = [feature[0].flatten(1) for feature in (teacher, student)]
        sides = [F.normalize(side[side.norm(dim=1) > 0], dim=1).numpy() for side in maps]  # channels that are not zero
        points = np.concatenate(sides)
        place = TSNE(perplexity=min(30, (len(points) - 1) // 3), init="pca", random_state=0).fit_transform(points)
        first, second = np.split(np.round(place, 2), [len(sides[0])])
        places[cell.row.name] = {"teacher": first.tolist(), "student": second.tolist()}
    return places


def neurons(analysis: Analysis, cells: list[Cell]) -> dict[str, bytes]:
    """Heat maps of the teacher's most active neurons of the last stage and of the nearest ones of the students, as PNG files."""
    images = analysis.images[:SHOWN].to(analysis.device)
    networks = {"teacher": (analysis.teacher, analysis.teacher_images[:SHOWN].to(analysis.device))}
    networks |= {cell.row.name: (analysis.student(cell.runs[0]), images) for cell in chosen(cells)}
    files = {}
    for name, picture in heatmaps(images, networks, analysis.normalization, labels=analysis.labels).items():
        file = io.BytesIO()
        pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()  # [3, H, W] in 0…1
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        files[name.removeprefix("neurons/")] = file.getvalue()
    return files
