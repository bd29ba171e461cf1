"""A teacher that computes its summaries batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nst.data.batch import Batch
from nst.distiller import Request, Summaries
from nst.taps import LOGITS, Taps


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of a network's inputs, per channel, for pixels in 0…1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def onto(self, other: "Normalization") -> tuple[list[float], list[float]]:
        """Scale and shift per channel that turn images normalised by `self` into images normalised by `other`."""
        scale = [s / o for s, o in zip(self.std, other.std, strict=True)]
        shift = [(m - o) / s for m, o, s in zip(self.mean, other.mean, other.std, strict=True)]
        return scale, shift


class LiveTeacher:
    """Runs the teacher without gradient and keeps only the summaries that the student's terms ask for."""

    def __init__(
        self,
        model: nn.Module,
        requests: Sequence[Request],
        *,
        images: Normalization | None = None,
        expects: Normalization | None = None,
    ) -> None:
        """Attach to a teacher.

        Args:
            model: put into `eval()` mode here.
            requests: from the distiller.
            images, expects: normalisation of the images handed in, and of those the teacher was trained on; where
                they differ the teacher's input is converted.
        """
        self.model = model.eval().requires_grad_(False)
        self.requests = tuple(requests)
        self.taps = Taps(model, [r.tap for r in requests])
        self._convert = None
        if images is not None and expects is not None and images != expects:
            device = next(model.parameters()).device
            self._convert = [torch.tensor(v, device=device).view(1, -1, 1, 1) for v in images.onto(expects)]

    def logits(self, images: Tensor) -> Tensor:
        """The teacher's own output for images `[B, C, H, W]` of the student's normalisation."""
        if self._convert is not None:
            images = images * self._convert[0] + self._convert[1]
        return self.model(images)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Summaries:
        """Summaries of a batch, by request key."""
        logits = self.logits(batch.images)
        features = self.taps.read() | {LOGITS: logits}
        return {r.key: r.loss.summarize(features[r.tap], r.student_shape) for r in self.requests}
