"""A finished run of about a second, exported once for all tests of a session."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import initialize_config_dir
from tests.conftest import TINY

from nst.cli.train import run
from nst.config import CONFIGS, ExportConfig
from nst.export import export

FORMATS = ["safetensors", "torch", "onnx", "onnx_int8"] if find_spec("onnxruntime") else ["safetensors", "torch"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: ResNet-14 → ResNet-8 on a few digits, KD + NST."""
    outputs = f"outputs={tmp_path_factory.mktemp('run')}/outputs"
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return Path(run(hydra.compose("config", [*TINY, "teacher=resnet14", "loss=kd_nst_poly", outputs]))["folder"])


@pytest.fixture(scope="session")
def exported(finished: Path) -> tuple[Path, dict[str, Any]]:
    """That run's export in every format that is installed, and what was measured."""
    return finished / "export", export(ExportConfig(run=str(finished), repeats=5, formats=FORMATS))
