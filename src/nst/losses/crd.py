"""Contrastive representation distillation (Tian, Krishnan & Isola, ICLR 2020)."""

from math import log, log1p, sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import Shape, blocks_of, check_choice, check_numbers, first_order, made, random_keys, unit_rows
from nst.losses.relational import PooledLoss

EPS = 1e-7
BLOCK_BYTES = 64 << 20  # scores against the bank held at a time


class CRD(PooledLoss):
    """Noise-contrastive loss of each image's student embedding against stored teacher embeddings, and the other way round.

    With e a pooled feature through a linear layer to `dim` values at unit length (one layer for each side, both trained),
    m the N stored embeddings of the other side, K negatives and s_j = exp(e · m_j / τ) / Z:

        L(e) = −log s_i / (s_i + K/N + 1e-7) − Σ_{K negatives j} log (K/N) / (s_j + K/N + 1e-7)

    for image i; the value is the mean over the batch of L(e_S) + L(e_T). Z is N times the mean of exp(e · m_j / τ) over the first batch
    and stays. After each training step the
    stored embeddings of the batch become (momentum · m + (1 − momentum) · e) at unit length.

    `init_memory` makes the banks (2 · N · dim values); it sees the global batch. Draws come from the run's "seed" alone: the same on a
    CPU, on a GPU and on every rank. All scores of an image against a bank are one matrix product.

    Args:
        dim: values of an embedding.
        negatives: K.
        temperature: τ > 0.
        momentum: of a stored embedding, 0 ≤ momentum < 1.
        sampling: "classes": negatives are images of other classes, without repetition, as in the authors' code ("exact"). Labels
            are learned as images are seen, so in the first epoch an image not yet seen may be one of the own class.
            "images": any image but the own one. Where there are fewer than K, all are taken, each K / their number times:
            what K draws with repetition, the authors' way out, give on average.
    """

    inputs = ("labels", "index", "seed")
    student_bank: Tensor
    teacher_bank: Tensor
    labels: Tensor
    log_z: Tensor

    def __init__(
        self,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        sampling: Literal["classes", "images"] = "classes",
    ) -> None:
        super().__init__()
        check_numbers(least=1, whole=True, dim=dim, negatives=negatives)
        check_numbers(above=0, temperature=temperature)
        check_numbers(least=0, below=1, momentum=momentum)
        check_choice("sampling", sampling, ("classes", "images"))
        self.dim, self.negatives, self.temperature, self.momentum = dim, negatives, temperature, momentum
        self.by_class = sampling == "classes"
        self.embed_student: nn.Module | None = None
        self.embed_teacher: nn.Module | None = None

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the embeddings."""
        self.embed_student = nn.Linear(student_shape[0], self.dim)
        self.embed_teacher = nn.Linear(teacher_shape[0], self.dim)

    def init_memory(self, num_images: int) -> None:
        """Make the banks: uniform in ±√(3 / dim). Raises ValueError for fewer than two images: there is nothing to contrast."""
        if num_images < 2:
            raise ValueError(f"CRD contrasts images with others: {num_images} training image is too few")
        bound = sqrt(3 / self.dim)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(num_images, self.dim).uniform_(-bound, bound))
        self.register_buffer("labels", torch.full((num_images,), -1, dtype=torch.int64))
        self.register_buffer("log_z", torch.full((2,), torch.nan))

    def value(self, student: Tensor, teacher: Tensor, labels: Tensor, index: Tensor, seed: Tensor) -> Tensor:
        """Of pooled features `[B, C_S]` and `[B, C_T]`, `labels` and `index` `[B]` int64. In training mode it updates the banks."""
        e_s, e_t = unit_rows(made(self.embed_student)(student)), unit_rows(made(self.embed_teacher)(teacher))
        if self.training:
            self.labels.index_copy_(0, index, labels)
        draw = Draw(self, index, labels, seed.to(index.device))
        if bool(self.log_z.isnan().any()):  # in each step: a first one may be undone, and one host sync costs little
            with torch.no_grad():
                self.log_z[0] = draw.log_mean(e_s, self.teacher_bank) + log(len(self.labels))
                self.log_z[1] = draw.log_mean(e_t, self.student_bank) + log(len(self.labels))
        value: Tensor = Contrast.apply(  # type: ignore[assignment]
            e_s, e_t, self.teacher_bank, self.student_bank, self.log_z.clone(), draw
        )
        if self.training:
            for bank, embedded in ((self.student_bank, e_s), (self.teacher_bank, e_t)):
                moved = self.momentum * bank[index] + (1 - self.momentum) * embedded.detach().to(bank.dtype)
                bank.index_copy_(0, index, unit_rows(moved))
        return value


class Draw:
    """Scores of a batch against a bank and the negatives that were drawn, a block of images at a time."""

    def __init__(self, loss: CRD, index: Tensor, labels: Tensor, seed: Tensor) -> None:
        self.loss, self.index, self.labels, self.seed = loss, index, labels, seed
        self.images = len(loss.labels)
        self.blocks = blocks_of(len(index), 8 * self.images, BLOCK_BYTES)

    def scores(self, block: slice, e: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        """e · m / τ of the images of a block, `[b, N]`, and that of the own image, `[b, 1]`."""
        scores = (e[block] / self.loss.temperature) @ bank.to(e.dtype).T
        return scores, scores.gather(1, self.index[block, None])

    def weights(self, block: slice, dtype: torch.dtype) -> Tensor:
        """How often each image is a negative of those of a block, `[b, N]`: K in all, but for images without any."""
        index = self.index[block, None]
        if self.loss.by_class:
            left_out = self.loss.labels == self.labels[block, None]
        else:
            left_out = torch.zeros(len(index), self.images, dtype=torch.bool, device=index.device)
        left_out.scatter_(1, index, True)
        if self.loss.negatives < self.images:
            keys = random_keys(self.seed, index, self.images).masked_fill_(left_out, -1)
            # on a CPU topk takes half the time of kthvalue
            left_out |= keys < keys.topk(self.loss.negatives, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        weights = (~left_out).to(dtype)
        return weights.mul_(self.loss.negatives / weights.sum(dim=1, keepdim=True).clamp_min(1))

    def log_mean(self, e: Tensor, bank: Tensor) -> Tensor:
        """log of the mean of exp(e · m / τ) over each image's own and negatives, all images of the batch together."""
        parts, total = [], 0.0
        for block in self.blocks:
            weights = self.weights(block, e.dtype)
            scores, own = self.scores(block, e, bank)
            parts += [own.logsumexp(dim=(0, 1)), (scores + weights.log()).logsumexp(dim=(0, 1))]
            total = total + weights.sum() + len(own)
        return torch.stack(parts).logsumexp(dim=0) - torch.as_tensor(total).log()


class Contrast(torch.autograd.Function):
    """Embeddings `[B, dim]` of both sides, each with the bank of the other → mean of L(e_S) + L(e_T).

    The gradient is gathered in the forward pass: the banks may change before the backward pass, and nothing of their size is kept.
    """

    @staticmethod
    def forward(ctx, e_s: Tensor, e_t: Tensor, bank_s: Tensor, bank_t: Tensor, log_z: Tensor, draw: Draw) -> Tensor:
        noise, batch = draw.loss.negatives / draw.images, len(e_s)
        shifts = log_z.to(e_s.dtype) + log(noise + EPS)
        total = e_s.new_zeros(())
        gradients = torch.zeros_like(e_s), torch.zeros_like(e_t)
        for block in draw.blocks:
            weights = draw.weights(block, e_s.dtype)
            for e, bank, shift, gradient in zip((e_s, e_t), (bank_s, bank_t), shifts, gradients, strict=True):
                scores, own = draw.scores(block, e, bank)
                # in place where it can be: on a CPU fresh memory of this size takes longer than what is computed in it
                scores.sub_(shift)
                total += F.softplus(shift - own).sum() + F.softplus(scores).mul_(weights).sum()
                slopes = scores.sigmoid_().mul_(weights)
                slopes.scatter_add_(1, draw.index[block, None], -torch.sigmoid(shift - own))
                gradient[block] = slopes @ bank.to(e.dtype)
        ctx.save_for_backward(*(gradient / (draw.loss.temperature * batch) for gradient in gradients), e_s, e_t)
        return total / batch + 2 * draw.loss.negatives * log1p(EPS / noise)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient_s, gradient_t, _, _ = ctx.saved_tensors
        return gradient_s * grad, gradient_t * grad, None, None, None, None
