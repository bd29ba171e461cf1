"""Runs of about a second."""

from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir

import nst.config  # noqa: F401  (registers the schema)

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = (
    "model=resnet8", "teacher=resnet14", "teacher.min_accuracy=0", "data.limit=40", "trainer.epochs=2",
    "trainer.batch_size=16", "trainer.heatmaps=false", "teacher.train.epochs=1",
)  # fmt: skip


def composed(config: str, *overrides: str) -> Any:
    """The real configuration with overrides."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(config, [*overrides])
