"""The states of the random generators, for a run that goes on as if it had not stopped."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng


def random_state() -> dict[str, Any]:
    """The generators of the main process, in types that a checkpoint may hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any], iteration: int) -> None:
    """Go on drawing where the checkpoint stopped. Processes other than the main one, whose state it does not have,
    take a seed that neither another process nor an earlier start has.
    """
    if not comm.is_main_process():
        seed_all_rng((torch.initial_seed() + 1_000_003 * (iteration + 1)) % 2**31)
        return
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
