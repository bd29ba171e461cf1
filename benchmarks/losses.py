"""`nst benchmark losses`: time and memory of forward + backward.

NST's implementations beside the broadcast implementation, and every loss beside a training step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import loss_steps
from benchmarks.loss_cases import METHODS, SETTINGS, Method, Setting, broadcast_bytes
from benchmarks.machine import describe, gpu_ceilings

ALLOCATORS = {
    "default": {},
    # glibc keeps large blocks instead of returning each to the system: no page is touched anew on every call
    "lifted": {"MALLOC_MMAP_THRESHOLD_": "17179869184", "MALLOC_TRIM_THRESHOLD_": "17179869184"},
}
PARTS = ("implementations", "steps", "memory")
HELP = "the losses: NST's implementations beside the broadcast one, and every loss beside a training step"
Row = dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `losses`."""
    parser.add_argument(
        "--parts",
        nargs="+",
        default=list(PARTS),
        choices=PARTS,
        help="implementations of NST; losses beside steps; memory at 1,000 classes",
    )
    parser.add_argument("--losses", nargs="+", default=list(loss_steps.LOSSES), choices=list(loss_steps.LOSSES))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--allocators", nargs="+", default=list(ALLOCATORS), choices=list(ALLOCATORS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="also measure our losses under torch.compile")
    parser.add_argument(
        "--memory-gb", type=float, default=8.0, help="the broadcast implementation's batch is cut to fit this"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each case")
    parser.add_argument("--repeats", type=int, default=3, help="least number of timed runs of each case")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    parser.add_argument("--markdown", action="store_true", help="print the short table of the README instead")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON."""
    rows = measure_forms(arguments) if "implementations" in arguments.parts else []
    report = {"machine": describe(arguments.device), "rows": rows}
    if "steps" in arguments.parts:
        say(f"{loss_steps.PAIR} · {', '.join(arguments.losses)}")
        report["steps"] = loss_steps.measure(arguments.losses, arguments.device, arguments.seconds, arguments.repeats)
    if "memory" in arguments.parts:
        report["memory"] = loss_steps.measure_memory(list(loss_steps.LARGE), arguments.device)
    if rows and arguments.device == "cuda":
        report["ceilings"] = add_rooflines(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    if rows and arguments.markdown:
        print(markdown(report))
    elif rows:
        print_tables(report)
    if "steps" in report:
        loss_steps.print_steps(report["steps"])
    if "memory" in report:
        loss_steps.print_memory(report["memory"])


def measure_forms(arguments: argparse.Namespace) -> list[Row]:
    """Every setting and method."""
    allocators = arguments.allocators if arguments.device == "cpu" else ["default"]
    rows: list[Row] = []
    for allocator in allocators:
        for setting in arguments.settings:
            for method in arguments.methods:
                for compiled in (False, True) if arguments.compile and METHODS[method].make else (False,):
                    say(f"{setting} · {method}{' · compiled' * compiled} · {allocator}")
                    rows.append(measure_case(arguments, allocator, setting, method, compiled))
    add_ratios(rows)
    return rows


def say(what: str) -> None:
    """What is measured now."""
    Console(stderr=True).print(what, style="dim")


def measure_case(arguments: argparse.Namespace, allocator: str, name: str, method: str, compiled: bool) -> Row:
    """One case in a process of its own; a case that fails (out of memory) says so in its row."""
    setting, kind = SETTINGS[name], METHODS[method]
    batch = setting.batch
    if kind.broadcasts:
        batch = max(1, min(batch, int(arguments.memory_gb * 1e9 / broadcast_bytes(kind.loss, setting))))
    case = {
        "setting": name,
        "method": method,
        "batch": batch,
        "device": arguments.device,
        "compiled": compiled,
        "seconds": arguments.seconds,
        "repeats": arguments.repeats,
    }
    command = [sys.executable, "-m", "benchmarks.loss_cases", json.dumps(case)]
    environment = {**os.environ, **ALLOCATORS[allocator], "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    row: Row = {**case, "allocator": allocator, "loss": kind.loss, "ours": kind.make is not None}
    if done.returncode:
        return {**row, "error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return {**row, **summarise(json.loads(done.stdout.splitlines()[-1]), batch)}


def summarise(results: dict, batch: int) -> Row:
    """Median, quartiles, extremes and n of the times, and what one image takes."""
    times = results["milliseconds"]
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return {
        "n": len(times),
        "median_ms": statistics.median(times),
        "quartiles_ms": [round(quartiles[0], 4), round(quartiles[2], 4)],
        "range_ms": [min(times), max(times)],
        "ms_per_image": statistics.median(times) / batch,
        "extra_mb": results["extra_bytes"] / 1e6,
        "mb_per_image": results["extra_bytes"] / 1e6 / batch,
        "value": results["value"],
    }


def add_ratios(rows: list[Row]) -> None:
    """Speed-up and memory reduction against the broadcast implementation of the same loss, image for image."""
    broadcast = {
        (row["allocator"], row["setting"], row["loss"]): row
        for row in rows
        if METHODS[row["method"]].broadcasts and "error" not in row
    }
    for row in rows:
        base = broadcast.get((row["allocator"], row["setting"], row["loss"]))
        if base is not None and "error" not in row:
            row["speedup"] = base["ms_per_image"] / row["ms_per_image"]
            if row["mb_per_image"] > 0:
                row["memory_reduction"] = base["mb_per_image"] / row["mb_per_image"]


def work(method: Method, setting: Setting) -> tuple[float, float]:
    """Bytes that must move and float32 operations of one image: S is read twice, T once, the gradient written."""
    n, c_s, c_t = setting.side**2, setting.student, setting.teacher
    moved = 4.0 * n * (3 * (c_t if method.loss == "fitnet" else c_s) + c_t)
    if method.loss == "poly":
        return moved, 2.0 * n * min(n * (2 * c_s + c_t), 3 * c_s**2 + c_t**2 + 2 * c_s * c_t)
    if method.loss == "gaussian":
        return moved, 2.0 * n * (2 * c_s**2 + c_t**2 + 2 * c_s * c_t)
    return moved, 2.0 * n * (3 * c_s + c_t)


def add_rooflines(rows: list[Row]) -> dict[str, float]:
    """Puts on each of our rows the share of the device's measured ceilings; returns the ceilings."""
    ceilings = gpu_ceilings()
    for row in rows:
        if row["ours"] and "error" not in row:
            moved, operations = work(METHODS[row["method"]], SETTINGS[row["setting"]])
            seconds = row["ms_per_image"] / 1e3
            row["share_of_bandwidth"] = moved / seconds / ceilings["bytes_per_second"]
            row["share_of_flops"] = operations / seconds / ceilings["flops_per_second"]
    return ceilings


def print_tables(report: dict) -> None:
    """One table for each allocator and setting."""
    console = Console()
    console.print(" · ".join(f"{key} {value}" for key, value in report["machine"].items()))
    for key in dict.fromkeys((row["allocator"], row["setting"]) for row in report["rows"]):
        allocator, setting = key[0], SETTINGS[key[1]]
        table = Table(title=f"{shape_of(setting)} · {allocator} allocator")
        table.add_column("method", no_wrap=True, min_width=max(len(cells(row)[0]) for row in report["rows"]))
        for column in ("B", "ms (quartiles)", "n", "MB", "speed-up", "memory reduction"):
            table.add_column(column, justify="right", no_wrap=True)
        if "ceilings" in report:
            table.add_column("roofline", justify="right")
        for row in report["rows"]:
            if (row["allocator"], row["setting"]) == key:
                table.add_row(*cells(row))
        console.print(table)


def shape_of(setting: Setting) -> str:
    """E.g. "paper, CIFAR: B 128, 336/256 channels, 8×8"."""
    side = f"{setting.side}×{setting.side}"
    return f"{setting.title}: B {setting.batch}, {setting.student}/{setting.teacher} channels, {side}"


def cells(row: Row) -> list[str]:
    """One row of the terminal's table."""
    name = row["method"] + (" · compiled" if row["compiled"] else "")
    if "error" in row:
        return [name, str(row["batch"]), row["error"][:40]]
    low, high = row["quartiles_ms"]
    ratios = [f"{row[key]:.1f}×" if key in row else "" for key in ("speedup", "memory_reduction")]
    roofline = [f"{max(row['share_of_bandwidth'], row['share_of_flops']):.0%}"] if "share_of_flops" in row else []
    times = [f"{row['median_ms']:.1f} ({low:.1f}–{high:.1f})", str(row["n"])]
    return [name, str(row["batch"]), *times, f"{row['extra_mb']:.0f}", *ratios, *roofline]


def markdown(report: dict) -> str:
    """The short table: for each setting the broadcast implementation, the pairwise product and ours, default allocator."""
    machine = report["machine"]
    lines = [
        "| setting | loss | broadcast implementation | pairwise product | this project | speed-up | memory reduction |",
        "|---|---|---|---|---|---|---|",
    ]
    results = {(r["setting"], r["method"], r["compiled"]): r for r in reversed(report["rows"]) if "error" not in r}
    for setting in dict.fromkeys(row["setting"] for row in report["rows"]):
        for loss in ("linear", "poly", "gaussian"):
            ours = results.get((setting, loss, False))
            if ours is None:
                continue
            others = [
                results.get((setting, f"{loss}-{implementation}", False))
                for implementation in ("broadcast", "pairwise")
            ]
            ratios = [f"{ours[key]:,.0f}×" if key in ours else "" for key in ("speedup", "memory_reduction")]
            texts = [short(row, SETTINGS[setting].batch) for row in (*others, ours)]
            lines.append(f"| {' | '.join([shape_of(SETTINGS[setting]), loss, *texts, *ratios])} |")
    count = min((row["n"] for row in results.values()), default=0)
    where = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, commit {machine['commit']}"
    return "\n".join([*lines, "", f"Forward + backward, median of at least {count} runs; {where}, {machine['date']}."])


def short(row: Row | None, batch: int) -> str:
    """Time and memory in a few words, with the batch where it had to be smaller."""
    if row is None:
        return ""
    smaller = f" (B {row['batch']})" if row["batch"] != batch else ""
    digits = 0 if row["median_ms"] >= 100 else 1
    return f"{row['median_ms']:,.{digits}f} ms, +{row['extra_mb']:,.0f} MB{smaller}"
