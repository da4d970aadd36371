"""The environment of a run: library versions and random seeds."""

import logging
import os
import random
import time

import numpy as np
import torch

__all__ = ["TORCH_VERSION", "seed_all_rng"]

TORCH_VERSION: tuple[int, ...] = tuple(int(part) for part in torch.__version__.split(".")[:2])  # (major, minor)


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python's, NumPy's and PyTorch's generators; without a seed draw one and log it."""
    if seed is None:
        fresh = [time.time_ns(), os.getpid(), int.from_bytes(os.urandom(4), "big")]
        seed = int(np.random.SeedSequence(fresh).generate_state(1)[0]) >> 1  # fits a signed 32 bit integer
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed % 2**32)
