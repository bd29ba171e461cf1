"""One-for-all distillation, OFA-KD (Hao, Guo, Han, Tang, Hu, Wang & Xu, NeurIPS 2023)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn, where
from torch.nn import functional as F

from nst.losses.base import Shape, check_choice, check_equal, check_numbers, no_autocast, target_tensor, working_dtype
from nst.losses.kd import LogitLoss, expectation


class OFA(LogitLoss):
    """ofa(z_S) + Σ over the student's stages of ofa(head(F)); ofa(z) = −Σ_c w_c · log p[c], p = softmax(z); mean over the batch.

    y is the image's label: w_y = (1 + p_T[y])^ε − 1, the others' w_c = p_T[c]. A stage's head turns its map into logits: the k-th of n
    stages has n − k separable convolutions of stride 2 that double the channels (the last one goes to `width`), the n-th a 1×1 convolution
    to `width`, then the mean over positions and a linear layer. Heads are trained with the student and are no part of it.

    The teacher gives its logits alone, so its architecture does not matter: name the pairs {teacher: logits, student: stage1} … from the
    first stage to the last, and {teacher: logits, student: logits}. Heads are those for convolutional students.

    Args:
        epsilon: ε > 0.
        width: channels before a head's linear layer; null: those of the student's last stage (the authors take the teacher's where they
            are more).
        convention: "paper": as above (by a summary of the paper). "official": the others' w_c = p_T[c]^ε, too.
    """

    inputs = ("labels",)
    on_logits: ClassVar[bool] = False
    all_layers: ClassVar[bool] = True

    def __init__(
        self, epsilon: float = 1.0, width: int | None = None, convention: Literal["paper", "official"] = "paper"
    ) -> None:
        super().__init__()
        check_numbers(above=0, epsilon=epsilon)
        check_numbers(least=1, whole=True, width=1 if width is None else width)
        check_choice("convention", convention, ("paper", "official"))
        self.epsilon, self.width, self.official = float(epsilon), width, convention == "official"
        self.heads = nn.ModuleList()

    def setup(self, student_shape: Sequence[Shape], teacher_shape: Sequence[Shape]) -> None:
        """Make the heads. Takes lists of shapes, (C, H, W) or (classes,) for the student's logits."""
        maps = [shape for shape in student_shape if len(shape) == 3]
        classes = teacher_shape[0][0]
        width = self.width or (maps[-1][0] if maps else 0)
        self.heads = nn.ModuleList(
            head(shape[0], width, classes, len(maps) - k) for k, shape in enumerate(maps, start=1)
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, student_feature: Sequence[Tensor], target: Sequence[Mapping[str, Tensor]]
    ) -> Tensor:
        """Lists of `[B, C, H, W]` or logits `[B, classes]` and of targets, from the first layer to the last → scalar."""
        if sum(feature.ndim == 4 for feature in student_feature) != len(self.heads):
            raise ValueError(
                f"OFA has {len(self.heads)} heads: call setup([student shapes], [teacher shapes]) of all layers first"
            )
        batch, heads = len(student_feature[0]), iter(self.heads)
        teacher, labels = target_tensor(target[0], "logits", batch), target_tensor(target[0], "labels", batch)
        with no_autocast(student_feature[0]):
            weights = self.weights(teacher.to(working_dtype(student_feature[0])), labels)
        total = weights.new_zeros(())
        for feature in student_feature:
            if feature.ndim == 4:
                feature = next(heads)(feature)
            check_equal(feature, teacher)
            with no_autocast(feature):
                total = total - expectation(weights, F.log_softmax(feature.to(weights.dtype), dim=1)).mean()
        return total

    def weights(self, teacher: Tensor, labels: Tensor) -> Tensor:
        """w of each class, `[B, classes]`, from the teacher's logits."""
        p = F.softmax(teacher, dim=1)
        own = F.one_hot(labels, p.shape[1]).bool()
        return where(own, (1 + p) ** self.epsilon - 1, p**self.epsilon if self.official else p)

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The logits, of one layer."""
        student, teacher = tuple(student_shape), tuple(teacher_shape)
        if len(teacher) != 1 or (len(student) != 3 and student != teacher):
            pairs = "pairs such as {teacher: logits, student: stage1} are needed"
            raise ValueError(f"the student has {student}, the teacher {teacher}: {pairs}")
        return {"logits": teacher}


def head(channels: int, width: int, classes: int, halvings: int) -> nn.Module:
    """`[B, channels, H, W]` → logits `[B, classes]`, over `halvings` separable convolutions of stride 2, or one of 1×1."""
    blocks: list[nn.Module] = []
    for k in range(halvings):
        out = width if k == halvings - 1 else 2 * channels
        blocks += [*separable(channels, channels, 2), *separable(channels, out, 1)]
        channels = out
    if not halvings:
        blocks = [nn.Conv2d(channels, width, 1)]
    module = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return module


def separable(channels: int, out: int, stride: int) -> list[nn.Module]:
    """A 3×3 convolution of each channel, a 1×1 convolution, batch norm and ReLU."""
    return [
        nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    ]
