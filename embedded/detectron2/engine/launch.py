"""Starting one process per GPU, or per share of the processor where there is no GPU."""

import datetime
import gc
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = datetime.timedelta(minutes=30)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: datetime.timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run `main_func(*args)` in every process of a group, with NCCL on CUDA and Gloo without.

    Under torchrun the processes are there already: they only join their group, and torchrun's numbers count. An
    exception in one process ends the others and is raised here with its traceback.

    Args:
        main_func: must be importable, as it runs in new processes.
        num_gpus_per_machine: processes per machine; without CUDA these are processes on the CPU.
        num_machines: how many machines run this call.
        machine_rank: which of them this is, from 0.
        dist_url: where machine 0 listens, such as "tcp://10.0.0.1:29500"; "auto", on one machine only, picks a
            free port.
        args: of `main_func`.
        timeout: how long a process waits for the others before it gives up.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
        _run_under_torchrun(main_func, args, timeout)
        return
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    if torch.cuda.is_available() and num_gpus_per_machine > torch.cuda.device_count():
        raise ValueError(
            f"{num_gpus_per_machine} GPUs were asked for and this machine has {torch.cuda.device_count()}: "
            f"lower --num-gpus"
        )
    if dist_url == "auto" or dist_url is None:
        if num_machines > 1:
            raise ValueError(
                "dist_url 'auto' works on one machine only: give the address of machine 0, tcp://HOST:PORT"
            )
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    job = (main_func, args, world_size, num_gpus_per_machine, machine_rank, dist_url, timeout)
    mp.start_processes(_run_spawned, args=job, nprocs=num_gpus_per_machine, start_method="spawn")


def _run_spawned(
    local_rank: int,
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    world_size: int,
    local_size: int,
    machine_rank: int,
    dist_url: str,
    timeout: datetime.timedelta,
) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        # Else every process starts a thread per core, and they spend their time waiting for each other.
        torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
    rank = machine_rank * local_size + local_rank
    where = {"init_method": dist_url, "rank": rank, "world_size": world_size}
    _run_in_group(main_func, args, local_rank, local_size, timeout, where)


def _run_under_torchrun(main_func: Callable[..., Any], args: tuple[Any, ...], timeout: datetime.timedelta) -> None:
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if dist.is_initialized():
        main_func(*args)
        return
    _run_in_group(main_func, args, local_rank, local_size, timeout, {"init_method": "env://"})


def _run_in_group(
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    local_rank: int,
    local_size: int,
    timeout: datetime.timedelta,
    where: dict[str, Any],
) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group(backend, timeout=timeout, **where)
    except Exception:
        logging.getLogger(__name__).error("Could not join the process group at %s", where["init_method"])
        raise
    comm.create_local_process_group(local_size)
    comm.synchronize()  # no process starts its work before all of them are there
    main_func(*args)
    _leave_group()


def _leave_group() -> None:
    """Let go of the group and all that holds it, so that its threads end now.

    One that still releases a tensor while the interpreter shuts down would abort the process.
    """
    comm._LOCAL_GROUP = None
    dist.destroy_process_group()
    gc.collect()  # models in cycles hold the group, too


def _free_port() -> int:
    """A port nobody uses now; another program might take it before we do, which then fails loudly."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
