"""What a run writes while it trains: JSON lines, TensorBoard, a progress bar. Only rank 0 has one that writes."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

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
        self._lines = (folder / METRICS).open("ab")
        self._board = SummaryWriter(str(folder / BOARD))
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", disable=None if show else True, dynamic_ncols=True
        )

    def _cut(self, sizes: dict[str, int]) -> None:
        for file in [self.folder / METRICS, *(self.folder / BOARD).glob("*")]:
            size = sizes.get(str(file.relative_to(self.folder)))
            if size is None:
                file.unlink(missing_ok=True)
            else:
                with file.open("r+b") as f:
                    f.truncate(size)

    def sizes(self) -> dict[str, int]:
        """Bytes written so far, by file; all of it is handed to the operating system first."""
        self._lines.flush()
        self._board.flush()
        files = [self.folder / METRICS, *(self.folder / BOARD).glob("*")]
        return {str(f.relative_to(self.folder)): f.stat().st_size for f in files}

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One event: a JSON line `{"kind", "step", **values}`; its numbers also as TensorBoard scalars `kind/name`."""
        line = json.dumps({"kind": kind, "step": step, **values})
        self._lines.write(line.encode() + b"\n")
        self._lines.flush()
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

    def close(self) -> None:
        """Flush and close everything."""
        self._bar.close()
        self._board.close()
        self._lines.close()
