"""Several processes on one machine: joining, training alike, failing loudly. All with Gloo, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.engine import SimpleTrainer, create_ddp_model, launch
from detectron2.utils import comm
from torch import nn

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="launch takes NCCL where there is CUDA")


def _train(folder: str) -> None:
    """A linear model on data that differs from process to process."""
    rank = comm.get_rank()
    torch.manual_seed(rank)

    class Model(nn.Linear):
        def forward(self, batch):
            return {"loss": super().forward(batch).square().mean()}

    model = create_ddp_model(Model(3, 2), broadcast_buffers=False)
    batches = [torch.randn(4, 3) for _ in range(3)]
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.train(0, 3)
    result = {
        "weights": [p.detach() for p in model.parameters()],
        "ranks": comm.all_gather((rank, comm.get_local_rank(), comm.get_world_size())),
        "first batch": batches[0],
        "scalars": dict(trainer.storage.latest()),
    }
    torch.save(result, Path(folder) / f"{rank}.pt")


def _fail_in_one(folder: str) -> None:
    if comm.get_rank() == 1:
        raise RuntimeError("rank one has had enough")
    comm.synchronize()


def _check_two_processes(folder: Path) -> None:
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    assert first["ranks"] == second["ranks"] == [(0, 0, 2), (1, 1, 2)]
    assert not torch.equal(first["first batch"], second["first batch"])
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    assert "total_loss" in first["scalars"]


def test_one_process_is_a_direct_call():
    seen = []
    assert launch(lambda *args: seen.append((args, comm.get_world_size())), 1, args=(1, "a")) is None
    assert seen == [((1, "a"), 1)]


@cpu_only
def test_two_processes_end_with_equal_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch(_train, 2, dist_url="auto", args=(str(tmp_path),))
    _check_two_processes(tmp_path)


@cpu_only
def test_an_error_in_one_process_is_raised_with_its_traceback(tmp_path):
    with pytest.raises(Exception, match="rank one has had enough"):
        launch(_fail_in_one, 2, dist_url="auto", args=(str(tmp_path),))


@cpu_only
@pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream does not know torchrun")
def test_under_torchrun_the_processes_that_are_there_are_used(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from test_launch import _train; "
    script = tmp_path / "main.py"
    script.write_text(
        f"{code}from detectron2.engine import launch\n"
        "if __name__ == '__main__':\n    launch(_train, 1, args=(sys.argv[2],))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(Path(__file__).parent), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    _check_two_processes(tmp_path)


def test_auto_is_for_one_machine():
    with pytest.raises((ValueError, AssertionError)):
        launch(_train, 1, num_machines=2, dist_url="auto")
