"""Communication between the processes of a run; every function works in a single process too."""

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_GROUP: "dist.ProcessGroup | None" = None
_MISSING_GROUP = (
    "The process group of this machine is not set up: start with detectron2.engine.launch() or torchrun, "
    "or call create_local_process_group(num_workers_per_machine) on every process."
)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """How many processes take part; 1 without torch.distributed."""
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    """The number of this process among all; 0 without torch.distributed."""
    return dist.get_rank() if _distributed() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make one group for the processes of each machine. Every process must call it, once.

    Raises:
        AssertionError: groups exist already, or the processes do not divide evenly over machines.
    """
    global _LOCAL_GROUP
    assert _LOCAL_GROUP is None, "create_local_process_group() was called before"
    world = get_world_size()
    assert world % num_workers_per_machine == 0, f"{world} processes are not a multiple of {num_workers_per_machine}"
    for first in range(0, world, num_workers_per_machine):
        ranks = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(ranks)  # a collective call: every process makes every group
        if get_rank() in ranks:
            _LOCAL_GROUP = group


def get_local_process_group() -> "dist.ProcessGroup":
    """The group of the processes on this machine, as create_local_process_group made it."""
    assert _LOCAL_GROUP is not None, _MISSING_GROUP
    return _LOCAL_GROUP


def get_local_rank() -> int:
    """The number of this process on its machine; 0 without torch.distributed."""
    return _on_this_machine("LOCAL_RANK", 0)


def get_local_size() -> int:
    """How many processes this machine runs; 1 without torch.distributed."""
    return _on_this_machine("LOCAL_WORLD_SIZE", 1)


def _on_this_machine(torchrun_variable: str, alone: int) -> int:
    if not _distributed():
        return alone
    if _LOCAL_GROUP is None and torchrun_variable in os.environ:
        return int(os.environ[torchrun_variable])
    group = get_local_process_group()
    return dist.get_rank(group=group) if torchrun_variable == "LOCAL_RANK" else dist.get_world_size(group=group)


def is_main_process() -> bool:
    """Whether this is rank 0, which alone writes logs and checkpoints."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process is here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])  # else NCCL guesses the device from the rank
    else:
        dist.barrier()


@lru_cache
def _cpu_group(world: "dist.ProcessGroup") -> "dist.ProcessGroup":
    # Objects are gathered as CPU tensors, which NCCL cannot carry. Cached for each default group: a new run, a new one.
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


def _object_group(group: "dist.ProcessGroup | None") -> "dist.ProcessGroup":
    return _cpu_group(dist.group.WORLD) if group is None else group


def all_gather(data: Any, group: "dist.ProcessGroup | None" = None) -> list[Any]:
    """Every process's `data` (any picklable object), in the order of ranks, on every process."""
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    gathered: list[Any] = [None] * dist.get_world_size(group)
    if len(gathered) == 1:
        return [data]
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: "dist.ProcessGroup | None" = None) -> list[Any]:
    """Every process's `data` (any picklable object) on rank `dst`; an empty list on the others."""
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    if dist.get_world_size(group) == 1:
        return [data]
    gathered = [None] * dist.get_world_size(group) if get_rank() == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A random number all processes agree on: rank 0's draw from NumPy. Every process must call it."""
    return all_gather(int(np.random.randint(2**31)))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum (or average) scalar tensors over processes; only rank 0 gets the right numbers.

    Args:
        input_dict: the same names on every process, each a scalar tensor.
        average: divide by the number of processes.
    """
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    names = sorted(input_dict)
    with torch.no_grad():
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and get_rank() == 0:
            values /= world_size
    return dict(zip(names, values))
