"""The student as files: safetensors, torch.export, ONNX and ONNX in 8 bits. Each can be loaded as its users do."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from nst.finished import load_student
from nst.storage.folder import STUDENT

FILES = {"safetensors": STUDENT, "torch": "student.pt2", "onnx": "student.onnx", "onnx_int8": "student.int8.onnx"}

Forward = Callable[[Tensor], Tensor]


class Rescaled(nn.Module):
    """A network whose input is scaled and shifted by channel first: `model(images · scale + shift)`, both `[C]` float32."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Images `[B, C, H, W]` → logits."""
        return self.model(images * self.scale + self.shift)


def formats_to_write(formats: Sequence[str] | None) -> list[str]:
    """The formats to write; by default all but 8 bits, ONNX if it is installed. Raises ValueError for what can't be written."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if formats is None:
        return ["safetensors", "torch"] + (["onnx"] if not missing else [])
    for name in formats:
        if name not in FILES:
            raise ValueError(f"formats={list(formats)}: {name!r} found, any of {', '.join(FILES)} are needed")
        if name.startswith("onnx") and missing:
            raise ValueError(f"formats: {name} needs {', '.join(missing)}: pip install 'nst[onnx]'")
    return [name for name in FILES if name in formats]


def capture(model: nn.Module, image_shape: tuple[int, int, int]) -> ExportedProgram:
    """The model as a graph of torch's own operations, for any batch size. Raises ValueError if it branches on values, for example."""
    images, dynamic = torch.zeros(2, *image_shape), ({0: Dim("batch", min=1)},)
    try:
        program = torch.export.export(model, (images,), dynamic_shapes=dynamic)
    except Exception as error:  # torch raises many kinds here
        network = type(model).__name__
        raise ValueError(f"torch.export can't capture {network}; use formats=[safetensors]: {error}") from error
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # names source files of this machine
    return program


def onnx_bytes(program: ExportedProgram, name: str, output: str = "logits") -> bytes:
    """The content of `student.onnx`, weights inside; input `name`, the batch size free."""
    names: dict[str, Any] = {"input_names": [name], "output_names": [output]}
    exported = torch.onnx.export(program, (), **names, dynamo=True, external_data=False, verbose=False)
    assert exported is not None
    model = exported.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"  # torch names it s77 or similar
    del model.graph.value_info[:]  # inner shapes with the old name; runtimes infer them
    return model.SerializeToString()


def int8_bytes(onnx: bytes, calibration: Iterable[Tensor], exclude: Collection[str] = ()) -> bytes:
    """A model of `onnx_bytes` in 8 bits, by onnxruntime's static quantisation (QDQ, weights by channel), batch norms folded.

    Args:
        calibration: batches of images as the model takes them, for the range of activations.
        exclude: layers that stay in 32 bits, by their names in the network, such as "conv1"; a name means all inside of it.

    Raises:
        ValueError: an unknown layer.
    """
    import onnx as onnx_format
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    graph = onnx_format.load_from_string(onnx).graph
    values = {value.name for value in graph.initializer}
    layers = {  # name in the network → node of the graph
        name.removesuffix(".weight").removeprefix("model."): node.name  # "model." is `Rescaled`'s
        for node in graph.node
        for name in node.input
        if name in values and name.endswith(".weight")
    }
    inside = {name: [node for layer, node in layers.items() if f"{layer}.".startswith(f"{name}.")] for name in exclude}
    if unknown := [name for name, nodes in inside.items() if not nodes]:
        raise ValueError(f"int8_exclude: no layer {unknown[0]} with weights; there are {', '.join(layers)}")

    feeds = ({graph.input[0].name: batch.numpy()} for batch in calibration)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, folded, small = (Path(folder) / name for name in ("plain.onnx", "folded.onnx", "int8.onnx"))
        plain.write_bytes(onnx)
        quant_pre_process(plain, folded, skip_symbolic_shape=True)
        kinds: Any = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
        kinds["nodes_to_exclude"] = [node for nodes in inside.values() for node in nodes]
        quantize_static(folded, small, Reader(), QuantFormat.QDQ, **kinds)
        return small.read_bytes()


def load(folder: Path, name: str) -> Forward:
    """The file of a format as a function from images to logits on the CPU, loaded from disk."""
    path = folder / FILES[name]
    if name == "safetensors":
        return load_student(folder)
    if name == "torch":
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    key = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {key: images.numpy()})[0])
