"""`nst benchmark losses`: time and memory of forward + backward.

NST's implementations beside the broadcast one, every loss beside a training step, and its memory at 1,000 classes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.console import Console

from benchmarks import loss_steps
from benchmarks.implementations import METHODS, OURS, SETTINGS, Setting, broadcast_bytes
from benchmarks.measure import Row, ceilings, machine, show, write

ALLOCATORS = {
    "default": {},
    # glibc keeps large blocks instead of returning each to the system: no page is touched anew on every call
    "lifted": {"MALLOC_MMAP_THRESHOLD_": "17179869184", "MALLOC_TRIM_THRESHOLD_": "17179869184"},
}
PARTS = ("implementations", "steps", "memory")
HELP = "the losses: NST's implementations beside the broadcast one, and every loss beside a training step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `losses`."""
    choices = {
        "parts": PARTS,
        "losses": loss_steps.LOSSES,
        "settings": SETTINGS,
        "methods": METHODS,
        "allocators": ALLOCATORS,
    }
    for name, values in choices.items():
        parser.add_argument(f"--{name}", nargs="+", default=list(values), choices=list(values))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="also measure our losses under torch.compile")
    parser.add_argument(
        "--memory-gb", type=float, default=8.0, help="the broadcast implementation's batch is cut to fit this"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each case")
    parser.add_argument("--repeats", type=int, default=3, help="least number of timed runs of each case")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON."""
    report: Row = {"machine": machine(arguments.device)}
    if "implementations" in arguments.parts:
        report["rows"] = measure_implementations(arguments)
        for allocator, setting in dict.fromkeys((row["allocator"], row["setting"]) for row in report["rows"]):
            rows = [row for row in report["rows"] if (row["allocator"], row["setting"]) == (allocator, setting)]
            title = f"{SETTINGS[setting]} · {allocator} allocator"
            columns = (
                "method" if not arguments.markdown else title,
                "B",
                "ms (quartiles)",
                "n",
                "MB",
                "speed-up",
                "memory",
                "roofline",
            )
            show(title, columns, [cells(row) for row in rows], arguments.markdown)
    if "steps" in arguments.parts:
        report["steps"] = loss_steps.measure(arguments.losses, arguments.device, arguments.seconds, arguments.repeats)
        title = f"{loss_steps.PAIR}, batch {loss_steps.BATCH}: the loss alone beside the plain student's step"
        columns = ("loss", "layers", "ms", "of the step", "by processor time", "MB", "kept, MB")
        show(title, columns, [loss_steps.cells(row) for row in report["steps"]], arguments.markdown)
    if "memory" in arguments.parts:
        report["memory"] = loss_steps.measure_memory(arguments.device)
        title = f"1,000 classes, batch {loss_steps.LARGE_BATCH}: memory of forward and backward"
        rows = [(row["loss"], f"{row['extra_mb']:.0f}") for row in report["memory"]]
        show(title, ("loss", "MB"), rows, arguments.markdown)
    write(report, arguments.json)


def measure_implementations(arguments: argparse.Namespace) -> list[Row]:
    """Every setting and method; speed-up and memory against the broadcast implementation of the same loss, image for image."""
    rows: list[Row] = []
    for allocator in arguments.allocators if arguments.device == "cpu" else ["default"]:
        for setting in arguments.settings:
            for method in arguments.methods:
                for compiled in (False, True) if arguments.compile and method in OURS else (False,):
                    Console(stderr=True).print(
                        f"{setting} · {method}{' · compiled' * compiled} · {allocator}", style="dim"
                    )
                    rows.append(measure_case(arguments, allocator, setting, method, compiled))
    good = [row for row in rows if "error" not in row]
    limits = ceilings() if arguments.device == "cuda" else {}
    broadcast = {(r["allocator"], r["setting"], r["loss"]): r for r in good if r["method"].endswith("-broadcast")}
    for row in good:
        base = broadcast.get((row["allocator"], row["setting"], row["loss"]))
        if base is not None:
            row["speedup"] = base["ms_per_image"] / row["ms_per_image"]
            if row["mb_per_image"] > 0:
                row["memory_reduction"] = base["mb_per_image"] / row["mb_per_image"]
        if limits and row["ours"]:
            moved, operations = work(row["loss"], SETTINGS[row["setting"]])
            seconds = row["ms_per_image"] / 1e3
            row["share_of_bandwidth"] = moved / seconds / limits["bytes_per_second"]
            row["share_of_flops"] = operations / seconds / limits["flops_per_second"]
    return rows


def measure_case(arguments: argparse.Namespace, allocator: str, name: str, method: str, compiled: bool) -> Row:
    """One case in a process of its own; a case that fails (out of memory) says so in its row."""
    setting, loss = SETTINGS[name], method.partition("-")[0]
    batch = setting.batch
    if method.endswith("-broadcast"):
        batch = max(1, min(batch, int(arguments.memory_gb * 1e9 / broadcast_bytes(loss, setting))))
    case = {
        "setting": name, "method": method, "batch": batch, "device": arguments.device, "compiled": compiled,
        "seconds": arguments.seconds, "repeats": arguments.repeats,
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.implementations", json.dumps(case)]
    environment = {**os.environ, **ALLOCATORS[allocator], "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    row: Row = {**case, "allocator": allocator, "loss": loss, "ours": method in OURS}
    if done.returncode:
        return {**row, "error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    found = json.loads(done.stdout.splitlines()[-1])
    times, extra = found["milliseconds"], found["extra_bytes"] / 1e6
    low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        **row, "n": len(times), "median_ms": median(times), "quartiles_ms": [low, high], "range_ms": [min(times), max(times)],
        "ms_per_image": median(times) / batch, "extra_mb": extra, "mb_per_image": extra / batch, "value": found["value"],
    }  # fmt: skip


def work(loss: str, setting: Setting) -> tuple[float, float]:
    """Bytes that must move and float32 operations of one image: S is read twice, T once, the gradient written."""
    n, c_s, c_t = setting.side**2, setting.student, setting.teacher
    moved = 4.0 * n * (3 * (c_t if loss == "fitnet" else c_s) + c_t)
    products = {
        "poly": min(n * (2 * c_s + c_t), 3 * c_s**2 + c_t**2 + 2 * c_s * c_t),
        "gaussian": 2 * c_s**2 + c_t**2 + 2 * c_s * c_t,
    }
    return moved, 2.0 * n * products.get(loss, 3 * c_s + c_t)


def cells(row: Row) -> list[str]:
    """One row of the table of implementations."""
    name = row["method"] + (" · compiled" if row["compiled"] else "")
    if "error" in row:
        return [name, str(row["batch"]), row["error"][:40], *[""] * 5]
    low, high = row["quartiles_ms"]
    ratios = [f"{row[key]:.1f}×" if key in row else "" for key in ("speedup", "memory_reduction")]
    roofline = f"{max(row['share_of_bandwidth'], row['share_of_flops']):.0%}" if "share_of_flops" in row else ""
    times = f"{row['median_ms']:.1f} ({low:.1f}–{high:.1f})"
    return [name, str(row["batch"]), times, str(row["n"]), f"{row['extra_mb']:.0f}", *ratios, roofline]
