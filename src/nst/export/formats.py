"""The student as files: safetensors + JSON, torch.export, ONNX. Each can be loaded as its users do."""

import importlib.util
import io
import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from nst import build
from nst.export.finished import REBUILD, FinishedRun, load_student
from nst.files import sha256_of, write_whole
from nst.models.weights import save_weights
from nst.runs.folder import STUDENT

FORMATS = ("safetensors", "torch", "onnx")
FILES = {"safetensors": STUDENT, "torch": "student.pt2", "onnx": "student.onnx"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Forward = Callable[[Tensor], Tensor]


class Normalized(nn.Module):
    """A network with the normalisation built in: its input is pixels in 0…1."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, C, H, W]` in 0…1 → logits."""
        return self.model((pixels - self.mean) / self.std)


def formats_to_write(formats: Sequence[str] | None) -> list[str]:
    """The formats to write; by default all, ONNX only if its packages are installed.

    Raises:
        ValueError: an unknown format, or ONNX requested and not installed.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if formats is None:
        return [name for name in FORMATS if name != "onnx" or not missing]
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"formats={list(formats)}: {name!r} found, any of {', '.join(FORMATS)} are needed")
    if "onnx" in formats and missing:
        raise ValueError(f"formats: onnx needs {', '.join(missing)}: pip install 'nst[onnx]'")
    return [name for name in FORMATS if name in formats]


def capture(model: nn.Module, image_shape: tuple[int, int, int]) -> ExportedProgram:
    """The model as a graph of torch's own operations, for any batch size.

    Raises:
        ValueError: its `forward` can't be captured (for example, it branches on values).
    """
    example = torch.zeros(2, *image_shape)
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
    except Exception as error:  # torch raises many kinds here
        raise ValueError(
            f"torch.export can't capture {type(model).__name__}: {error}\n"
            "formats=[safetensors] needs no capture; torch and onnx do"
        ) from error
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # names source files of this machine
    return program


def write_safetensors(
    folder: Path, run: FinishedRun, model: nn.Module, about: dict[str, Any], metadata: dict[str, str]
) -> None:
    """`student.safetensors` and `model.json`: the callable and arguments that build the network."""
    save_weights(folder / STUDENT, model, metadata)
    node = build.without_weights(run.settings.model)
    recipe = {
        "target": node.pop("_target_"),
        "arguments": {key: value for key, value in node.items() if key != "name"},
        "weights": STUDENT,
        "sha256": sha256_of(folder / STUDENT),
        **about,
    }
    write_whole(folder / REBUILD, json.dumps(recipe, indent=1).encode())


def write_torch(folder: Path, program: ExportedProgram) -> None:
    """`student.pt2`."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_whole(folder / FILES["torch"], buffer.getvalue())


def write_onnx(folder: Path, program: ExportedProgram, name: str) -> None:
    """`student.onnx`, weights inside; input `name`, output `logits`, the batch size free."""
    exported = torch.onnx.export(
        program, (), input_names=[name], output_names=["logits"], dynamo=True, external_data=False, verbose=False
    )
    assert exported is not None
    model = exported.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"  # torch names it s77 or similar
    del model.graph.value_info[:]  # inner shapes with the old name; runtimes infer them
    write_whole(folder / FILES["onnx"], model.SerializeToString())


def load(folder: Path, name: str, allow: Collection[str] = ()) -> Forward:
    """The file of a format as a function from images to logits on the CPU, loaded from disk; `allow` as in `load_student`."""
    path = folder / FILES[name]
    if name == "safetensors":
        return load_student(folder, allow)
    if name == "torch":
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    key = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {key: images.numpy()})[0])
