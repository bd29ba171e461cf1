"""What a run writes while it trains: JSON lines, TensorBoard, a progress bar. Only rank 0 has one that writes."""

import json
import logging
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
BOARD = "tensorboard"


class Tracker:
    """Appends events to `metrics.jsonl` and TensorBoard so that a resumed run holds each step once.

    A checkpoint keeps `sizes()`; handing them back cuts the files to what they were then.
    """

    def __init__(
        self, folder: Path, sizes: dict[str, int] | None, steps: int, first_step: int, show: bool = True
    ) -> None:
        """Open the logs of a run.

        Args:
            folder: the run's folder.
            sizes: from the checkpoint that the run continues from, or None at a new start.
            steps, first_step: for the progress bar.
            show: print the progress.
        """
        self.folder = folder
        self.show = show
        self._cut(sizes or {})
        self._lines = (folder / METRICS).open("ab", buffering=0)
        self._board = SummaryWriter(str(folder / BOARD))
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", disable=None if show else True, dynamic_ncols=True
        )

    def _files(self) -> dict[str, Path]:
        files = [self.folder / METRICS, *(self.folder / BOARD).glob("*")]
        return {str(file.relative_to(self.folder)): file for file in files}

    def _cut(self, sizes: dict[str, int]) -> None:
        for name, file in (self._files() | {name: self.folder / name for name in sizes}).items():
            found, known = file.stat().st_size if file.is_file() else 0, sizes.get(name)
            if known is None:
                file.unlink(missing_ok=True)
            elif found < known:
                log.warning("%s has %d bytes, %d when the checkpoint was written: rows are lost", file, found, known)
            else:
                os.truncate(file, known)

    def sizes(self) -> dict[str, int]:
        """Bytes written so far, by file; all of them are on disk when this returns."""
        self._board.flush()
        files = self._files()
        for file in files.values():
            with file.open("rb") as f:
                os.fsync(f.fileno())
        return {name: file.stat().st_size for name, file in files.items()}

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One event: a JSON line `{"kind", "step", **values}`; its numbers also as TensorBoard scalars `kind/name`."""
        line = json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n"
        while line:
            line = line[self._lines.write(line) :]
        for name, value in values.items():
            for key, number in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(number, int | float):
                    self._board.add_scalar(f"{kind}/{name}{'/' if key else ''}{key}", number, step)

    def images(self, name: str, grid: Tensor, step: int) -> None:
        """A picture `[3, H, W]` in 0…1 for TensorBoard."""
        self._board.add_image(name, grid, step)

    def advance(self, text: str = "") -> None:
        """One step done."""
        if text:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def say(self, text: str) -> None:
        """A line for the reader, above the bar."""
        if self.show:
            self._bar.write(text)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Flush and close everything; trouble with that does not hide an error that came before."""
        with nullcontext() if kind is None else suppress(OSError):
            self._bar.close()
            self._lines.close()
            self._board.close()
