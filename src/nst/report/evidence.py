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
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from nst import build
from nst.config import RunConfig
from nst.files import sha256_of, write_whole
from nst.losses import NST
from nst.models.external import resize_inputs
from nst.models.weights import load_weights, recorded_size
from nst.report.heatmaps import features, heatmaps
from nst.report.text import Record
from nst.storage.folder import STUDENT, SUMMARY
from nst.tables.file import Group
from nst.tables.plan import Cell, Plan, finished, folder_of
from nst.teacher.network import Normalization, load_teacher

IMAGES = 256  # for MMD
SHOWN = 4  # images of the heat maps
DRAWN = 3  # methods of the heat maps and of t-SNE, beside the baseline
FORM = 5  # of the files; another one is made anew
KERNELS: dict[Any, str] = {"linear": "linear", "polynomial": "polynomial (xᵀy)²", "gaussian": "Gaussian"}


def gather(plan: Plan, device: torch.device) -> None:
    """Write `evidence/<group>.json` for every group; what is there for the same runs is kept."""
    for group in plan.table.groups:
        cells = [cell for cell in plan.cells if cell.group is group]
        done = [(cell, run) for cell in cells for run in cell.runs if finished(run)]
        runs = [f"{c.row.name} {folder_of(r).name} {sha256_of(folder_of(r) / SUMMARY)[:16]}" for c, r in done]
        subject = {"form": FORM, "layers": asdict(group.layers), "runs": runs}
        file = plan.request.folder / "evidence" / f"{group.name}.json"
        earlier = json.loads(file.read_bytes()) if file.exists() else {}
        if earlier | subject == earlier:
            continue
        file.unlink(missing_ok=True)  # the page would show it as that of the present runs
        taught = next((run for _, run in done if run.teacher.model is not None), None)
        if taught is None:
            continue
        # where it lies now: a path in a summary is of the folder that the run was started in
        weights = taught.teacher.weights or str(folder_of(build.teacher_run(taught)) / STUDENT)
        print(f"evaluating the networks of {group.title}", flush=True)
        try:
            found = subject | evaluated(group, cells, taught, weights, device)
            write_whole(file, json.dumps(found, indent=1).encode())
        except (OSError, ValueError) as error:  # weights are missing; a network lacks the layer, or features channels
            print(f"{group.title}: the networks are not evaluated: {error}", flush=True)


def evaluated(group: Group, cells: Sequence[Cell], taught: RunConfig, weights: str, device: torch.device) -> Record:
    """What the page shows of a group's networks on the first test images `[N, C, H, W]`; ValueError for a layer that they lack.

    images is N, mmd: row → kernel → MMD² of each seed before and after training; of a few rows, those with NST first, tsne: row →
    coordinates of the teacher's and the student's channels on the first image, and neurons: heat maps as PNG in base64.
    """
    from sklearn.manifold import TSNE

    data, of_teacher = build.dataset(taught), taught.teacher
    batches = [*islice(data.split("test").loader(64, train=False, device=device).epoch(0), IMAGES // 64)]
    images = torch.cat([batch.images for batch in batches])  # [N, C, H, W]
    numbers = torch.cat([batch.labels for batch in batches])[:SHOWN].tolist()
    normalization = Normalization(tuple(data.mean), tuple(data.std))
    teacher = build.network("teacher.model", of_teacher.model, of_teacher.seed).to(device).eval()
    resize_inputs(teacher, of_teacher.input_size or recorded_size(weights))
    load_teacher(teacher, normalization, weights, of_teacher.weights_key, of_teacher.mean, of_teacher.std)

    def student(run: RunConfig, trained: bool = True) -> nn.Module:
        model = build.network("model", run.model, run.seed)
        if trained:
            load_weights(model, folder_of(run) / STUDENT)
        return model.to(device)

    with torch.no_grad():
        teacher_features = features(teacher, images, group.layers.teacher)
        mmd: Record = {}
        for cell in cells:
            mmd[cell.row.name] = {kernel: {"before": [], "after": []} for kernel in KERNELS}
            for run in (run for run in cell.runs if finished(run)):
                for when in ("before", "after"):
                    of_student = features(student(run, when == "after"), images, group.layers.student)
                    for kernel in KERNELS:
                        loss, total = NST(kernel), 0.0  # which has ½ of MMD²
                        for t, s in zip(teacher_features.split(16), of_student.split(16), strict=True):
                            total += 2 * float(loss(s, loss.target(t, tuple(s.shape[1:])))) * len(s)
                        mmd[cell.row.name][kernel][when].append(round(total / len(images), 8))

        done = [cell for cell in cells if finished(cell.runs[0])]
        methods = [cell for cell in done if cell is not cells[0]]
        methods.sort(key=lambda cell: not any(name.startswith("nst") for name in cell.runs[0].loss))
        alone = [cell for cell in methods if len(cell.runs[0].loss) <= 2]  # the cross-entropy and one more
        chosen = [cell for cell in done if cell is cells[0] or cell in (alone or methods)[:DRAWN]]
        networks, tsne = {cell.row.name: student(cell.runs[0]) for cell in chosen}, {}
        for name, model in networks.items():
            one, other = teacher_features[:1], features(model, images, group.layers.student)[:1]
            if one.shape[2:] != other.shape[2:]:
                one = F.interpolate(one, other.shape[2:], mode="bilinear", align_corners=False)
            sides = [side[0].flatten(1) for side in (one, other)]
            sides = [F.normalize(side[side.norm(dim=1) > 0], dim=1).numpy() for side in sides]  # unit channel maps
            every = np.concatenate(sides)
            place = TSNE(perplexity=min(30, (len(every) - 1) // 3), init="pca", random_state=0).fit_transform(every)
            first, second = np.split(np.round(place, 2), [len(sides[0])])
            tsne[name] = {"teacher": first.tolist(), "student": second.tolist()}
        labels, pictures = [data.classes[number] if data.classes else f"class {number}" for number in numbers], {}
        drawn = heatmaps(images[:SHOWN], {"teacher": teacher, **networks}, normalization, labels)
        for name, picture in drawn.items():
            picture.save(file := io.BytesIO(), "PNG", optimize=True)
            pictures[name] = base64.b64encode(file.getvalue()).decode()
    return {"images": len(images), "mmd": mmd, "tsne": tsne, "neurons": pictures}
