"""`scripts/benchmark.py curves`: what training from stored knowledge does to the training curve, beside live training."""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

import nst.config  # noqa: F401  (registers the schema)
from benchmarks.machine import describe
from nst.config import CONFIGS

HELP = "training curves from stored knowledge beside live ones"
KINDS = {
    "live": ["cache.views=0"],
    "float16, all views": ["cache.views=all"],
    "float16, 4 views": ["cache.views=4"],
}
Curve = list[float]  # test top-1, percent, after each epoch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `curves`."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--outputs", default="outputs", help="the folder of the runs; finished ones are not repeated")
    parser.add_argument("--overrides", nargs="*", default=[], help="as of train.py, for all runs")
    parser.add_argument("--json", type=Path, help="write everything measured here")


def run(arguments: argparse.Namespace) -> None:
    """Train, print the table, write the JSON."""
    curves = {
        kind: [curve(arguments, seed, overrides) for seed in range(arguments.seeds)]
        for kind, overrides in KINDS.items()
    }
    if arguments.json:
        report = {"machine": describe("cpu"), "overrides": arguments.overrides, "top1": curves}
        arguments.json.write_text(json.dumps(report, indent=1))
    print_table(curves)


def curve(arguments: argparse.Namespace, seed: int, overrides: list[str]) -> Curve:
    """One run's evaluations."""
    from nst.cli.train import run as train

    words = [f"outputs={Path(arguments.outputs).resolve()}", f"seed={seed}", "trainer.heatmaps=false"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("config", [*words, *arguments.overrides, *overrides])
    lines = (Path(train(cfg)["folder"]) / "metrics.jsonl").read_text().splitlines()
    return [line["top1"] for line in map(json.loads, lines) if line["kind"] == "eval"]


def print_table(curves: dict[str, list[Curve]]) -> None:
    """Mean ± standard deviation over the seeds, for about eight of the epochs."""
    epochs = len(curves["live"][0])
    shown = sorted({*range(0, epochs, max(1, epochs // 8)), epochs - 1})
    table = Table(title=f"test top-1, %, mean ± standard deviation of {len(curves['live'])} seeds")
    table.add_column("epoch", justify="right")
    for kind in curves:
        table.add_column(kind, justify="right")
    for epoch in shown:
        values = [[one[epoch] for one in runs] for runs in curves.values()]
        spread = [f"{mean(v):.2f} ± {stdev(v) if len(v) > 1 else 0:.2f}" for v in values]
        table.add_row(str(epoch + 1), *spread)
    Console().print(table)
