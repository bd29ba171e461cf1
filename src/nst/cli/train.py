"""Train a student with or without a teacher: `nst train model=resnet20 loss=nst_poly`, `nst train --help`."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

import nst.config
from nst.cli.compose import hydra_main
from nst.cli.errors import readable_errors


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "config", arguments)


def task(cfg: DictConfig) -> float:
    """One run; sweepers minimise the returned error (percent, on the evaluated split)."""
    with readable_errors():
        summary = run(cfg)
    return 100 - summary["last"]["top1"] if summary else 0.0


def run(cfg: DictConfig) -> dict[str, Any]:
    """Execute a composed configuration, and print the result.

    Returns:
        The run's summary (also in `summary.json`); empty for a dry run.

    Raises:
        ValueError: a setting, file or result that makes the run impossible; raised before any work where possible.
        Interrupted: stopped by a signal, saved.
    """
    from dataclasses import asdict

    from nst import build
    from nst.cli.tables import result_table
    from nst.dist import join
    from nst.runs.run import distil

    settings = build.settings(cfg)
    if settings.dry_run:
        dry_run(settings)
        return {}
    with join(settings.trainer.device, settings.trainer.timeout) as group:
        group.check_same_settings(asdict(settings))
        summary = distil(settings, group)
        if group.main:
            result_table(settings, summary)
        return summary


def dry_run(settings: "nst.config.RunConfig") -> None:
    """Build the networks without any download, load the teacher's weights into its network, and print the plan of a run.

    Raises:
        ValueError: what makes the run impossible, weights that do not fit included.
    """
    from nst import build
    from nst.cli.tables import dry_run_tables
    from nst.models.weights import load_weights

    for node in (settings.model, settings.teacher.model):
        if node is not None and "pretrained" in node:
            node["pretrained"] = False
    networks = build.networks(settings)
    if networks.teacher is not None and settings.teacher.weights is not None:
        load_weights(networks.teacher, settings.teacher.weights)
    dry_run_tables(settings, networks)
