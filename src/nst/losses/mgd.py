"""Masked generative distillation, MGD (Yang, Li, Shao, Shi, Yuan & Yuan, ECCV 2022)."""

from torch import Tensor, nn

from nst.losses.base import Shape, check_numbers, check_shapes, made
from nst.losses.crd import random_keys
from nst.losses.maps import MapLoss


class MGD(MapLoss):
    """Σ over channels and positions of (G(m ⊙ a(F_S)) − F_T)²; mean over the batch.

    m is 0 for a channel with the probability `mask`, else 1, drawn for each image and step; a is a 1×1 convolution to the teacher's channels
    where they differ, G is 3×3, ReLU, 3×3, at the teacher's channels. Both are trained with the student and are no part of it. Draws depend on the
    run's "seed" of the step and an image's index alone, so ranks, accumulation and a continued run draw the same.

    (For dense prediction its authors mask positions instead.)

    Args:
        mask: probability that a channel is masked, 0 ≤ mask < 1.

    Raises:
        ValueError: an argument out of range; in `target_shapes`, maps of different height and width.
    """

    inputs = ("index", "seed")

    def __init__(self, mask: float = 0.15) -> None:
        super().__init__()
        check_numbers(least=0, below=1, mask=mask)
        self.mask = float(mask)
        self.align: nn.Module = nn.Identity()
        self.generate: nn.Module | None = None

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make a and G."""
        channels = teacher_shape[0]
        if student_shape[0] != channels:
            self.align = nn.Conv2d(student_shape[0], channels, 1)
        self.generate = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def project(self, student_feature: Tensor, teacher: Tensor, index: Tensor, seed: Tensor) -> Tensor:
        """G(m ⊙ a(F_S)), `[B, C_T, H, W]`.

        Args:
            index: `[B]` int64.
            seed: a whole number.
        """
        generate = made(self.generate, "MGD learns to generate the teacher's map")
        aligned = self.align(student_feature)
        return generate(aligned * self.kept(seed, index, teacher.shape[1]).to(aligned.dtype))

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of maps of one shape."""
        return (student - teacher).square().sum(dim=(1, 2, 3)).mean()

    def kept(self, seed: Tensor, index: Tensor, channels: int) -> Tensor:
        """Which channels are not masked, `[B, channels, 1, 1]` bool."""
        keys = random_keys(seed.to(index.device), index[:, None], channels)
        return (keys >= int(self.mask * 2**63))[:, :, None, None]

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The teacher's map. Raises ValueError for maps of different height and width."""
        check_shapes(student_shape, teacher_shape)
        if tuple(student_shape[1:]) != tuple(teacher_shape[1:]):
            raise ValueError(
                f"the student's map is {student_shape[1]}×{student_shape[2]}, the teacher's {teacher_shape[1]}×{teacher_shape[2]}; MGD "
                "compares maps of one size: take another pair of layers"
            )
        return super().target_shapes(student_shape, teacher_shape)
