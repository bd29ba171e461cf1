"""Results that need the trained networks, computed once and saved as a file a group for the page.

MMD between teacher and student before and after training, heat maps of single neurons (paper, Figure 2), and the
channels of both networks laid out by t-SNE (paper, Figure 5).
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from nst import build
from nst.build import teacher_run
from nst.config import RunConfig
from nst.files import sha256_of, write_whole
from nst.losses import NST
from nst.models.external import look_at
from nst.models.weights import load_weights, recorded_size
from nst.report.heatmaps import features, heatmaps
from nst.storage.folder import STUDENT, SUMMARY
from nst.tables.file import Group
from nst.tables.plan import Cell, Plan, finished, folder_of
from nst.teacher.network import Normalization, load_teacher

IMAGES = 256  # for MMD
SHOWN = 4  # images of the heat maps
DRAWN = 3  # methods of the heat maps and of t-SNE, beside the baseline
FORM = 5  # of the files; another one is made anew
KERNELS = ("linear", "polynomial", "gaussian")


def gather(plan: Plan, device: torch.device) -> None:
    """Write `evidence/<group>.json` for every group; what is there for the same runs is kept."""
    for group in plan.table.groups:
        cells = [cell for cell in plan.cells if cell.group is group]
        done = [(cell, run) for cell in cells for run in cell.runs if finished(run)]
        runs = [f"{c.row.name} {folder_of(r).name} {sha256_of(folder_of(r) / SUMMARY)[:16]}" for c, r in done]
        subject = {"form": FORM, "layers": asdict(group.layers), "runs": runs}
        file = plan.request.folder / "evidence" / f"{group.name}.json"
        earlier = json.loads(file.read_bytes()) if file.exists() else {}
        if all(earlier.get(key) == value for key, value in subject.items()):
            continue
        file.unlink(missing_ok=True)  # the page would show it as that of the present runs
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
            analysis, chosen = Analysis(group, taught, weights, device), _chosen(cells)
            found = {"mmd": analysis.mmd(cells), "tsne": analysis.tsne(chosen), "neurons": analysis.neurons(chosen)}
        except ValueError as error:  # a network of one's own may lack the layer, or its features have no channels
            print(f"{group.title}: the networks are not evaluated: {error}", flush=True)
            continue
        write_whole(file, json.dumps({**subject, "images": len(analysis.images), **found}, indent=1).encode())


def _chosen(cells: Sequence[Cell]) -> list[Cell]:
    """The rows that the pictures compare: the baseline and a few methods that are there, those with NST first."""
    done = [cell for cell in cells if finished(cell.runs[0])]
    methods = [cell for cell in done if cell is not cells[0]]
    methods.sort(key=lambda cell: not any(name.startswith("nst") for name in cell.runs[0].loss))
    alone = [cell for cell in methods if len(cell.runs[0].loss) <= 2]  # the cross-entropy and one more
    return [cell for cell in done if cell is cells[0] or cell in (alone or methods)[:DRAWN]]


class Analysis:
    """A group's teacher, some test images, and what any student makes of them."""

    def __init__(self, group: Group, run: RunConfig, weights: str, device: torch.device) -> None:
        """Load the teacher of `run` from `weights`, and the first test images `[N, C, H, W]`, normalised."""
        data = build.dataset(run)
        self.group, self.device = group, device
        batches = [*islice(data.split("test").loader(64, train=False, device=device).epoch(0), IMAGES // 64)]
        self.images = torch.cat([batch.images for batch in batches])
        numbers = torch.cat([batch.labels for batch in batches])[:SHOWN].tolist()
        self.labels = [f"class {number}" if data.classes is None else data.classes[number] for number in numbers]
        self.normalization = Normalization(tuple(data.mean), tuple(data.std))
        self.teacher = build.network("teacher.model", run.teacher.model, run.teacher.seed)
        look_at(self.teacher, run.teacher.input_size or recorded_size(weights))
        self.teacher.to(device).eval()
        key, mean, std = run.teacher.weights_key, run.teacher.mean, run.teacher.std
        load_teacher(self.teacher, self.normalization, weights, key, mean, std)
        with torch.no_grad():
            self.teacher_features = features(self.teacher, self.images, group.layers.teacher)

    def student(self, run: RunConfig, trained: bool = True) -> nn.Module:
        """The student of a run, before or after its training."""
        model = build.network("model", run.model, run.seed)
        if trained:
            load_weights(model, folder_of(run) / STUDENT)
        return model.to(self.device)

    @torch.no_grad()
    def student_features(self, run: RunConfig, trained: bool = True) -> Tensor:
        """Its features on the images."""
        return features(self.student(run, trained), self.images, self.group.layers.student)

    def mmd(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Row → kernel → MMD² of each seed's student, untrained and trained: the paper's eq. 4, mean over the images."""
        distances: dict[str, Any] = {}
        for cell in cells:
            values: dict[str, Any] = {kernel: {"before": [], "after": []} for kernel in KERNELS}
            for run in (run for run in cell.runs if finished(run)):
                for when, trained in (("before", False), ("after", True)):
                    of_student = self.student_features(run, trained)
                    for kernel in KERNELS:
                        loss, total = NST(kernel), 0.0
                        for t, s in zip(self.teacher_features.split(16), of_student.split(16), strict=True):
                            total += (
                                2 * float(loss(s, loss.target(t, tuple(s.shape[1:])))) * len(s)
                            )  # the loss has ½ of it
                        values[kernel][when].append(round(total / len(of_student), 8))
            distances[cell.row.name] = values
        return distances

    def tsne(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Row → coordinates of the teacher's and the student's unit channel maps on the first test image, laid out jointly."""
        from sklearn.manifold import TSNE

        places: dict[str, Any] = {}
        for cell in cells:
            student, teacher = self.student_features(cell.runs[0])[:1], self.teacher_features[:1]
            if teacher.shape[2:] != student.shape[2:]:
                teacher = F.interpolate(teacher, student.shape[2:], mode="bilinear", align_corners=False)
            maps = [feature[0].flatten(1) for feature in (teacher, student)]
            sides = [
                F.normalize(side[side.norm(dim=1) > 0], dim=1).numpy() for side in maps
            ]  # channels that are not zero
            points = np.concatenate(sides)
            place = TSNE(perplexity=min(30, (len(points) - 1) // 3), init="pca", random_state=0).fit_transform(points)
            first, second = np.split(np.round(place, 2), [len(sides[0])])
            places[cell.row.name] = {"teacher": first.tolist(), "student": second.tolist()}
        return places

    def neurons(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Heat maps of the teacher's most active neurons of the last stage and of the nearest ones of the students: PNG in base64."""
        images, pictures = self.images[:SHOWN], {}
        networks = {"teacher": (self.teacher, images)}
        networks |= {cell.row.name: (self.student(cell.runs[0]), images) for cell in cells}
        for name, picture in heatmaps(images, networks, self.normalization, labels=self.labels).items():
            file = io.BytesIO()
            pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()  # [3, H, W] in 0…1
            Image.fromarray(pixels).save(file, "PNG", optimize=True)
            pictures[name.removeprefix("neurons/")] = base64.b64encode(file.getvalue()).decode()
        return pictures
