"""A finished run of about a second, exported once for all tests of a session."""

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import initialize_config_dir

import nst.config  # noqa: F401  (registers the schema)
from nst.export import export
from nst.run import run

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = (
    "model=resnet8", "teacher=resnet14", "teacher.min_accuracy=0", "data.limit=40", "trainer.epochs=2",
    "trainer.batch_size=16", "trainer.heatmaps=false", "teacher.recipe.trainer.epochs=1",
)  # fmt: skip


def composed(config: str, *overrides: str) -> Any:
    """The real configuration with overrides."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(config, [*overrides])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: ResNet-14 → ResNet-8 on a few digits, KD + NST."""
    outputs = tmp_path_factory.mktemp("run") / "outputs"
    return Path(run(composed("config", *TINY, "loss=kd_nst_poly", f"outputs={outputs}"))["folder"])


@pytest.fixture(scope="session")
def exported(finished: Path) -> tuple[Path, dict[str, Any]]:
    """That run's export in every format that is installed, and what was measured."""
    report = export(composed("export", f"run={finished}", "repeats=5"))
    return finished / "export", report
