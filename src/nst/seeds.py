"""The seed of all draws: of torch, numpy and `random`, which users' code may draw from as well."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_draws(seed: int) -> None:
    """Seed torch, numpy and `random`: draws of a model or loss depend on this seed alone from here on."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global generator, which users' code draws from)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block whose draws depend on `seed` alone; afterwards the CPU's generators continue as if there had been none."""
    numpy_state, state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            seed_draws(seed)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(state)
