"""A training stopped on the original detectron2 goes on under `embedded/`, and the other way round.

`recorded/stopped_by_*.pth` are checkpoints of DefaultTrainer with optimiser, schedule and iteration, written by
`python tests/embedded/test_conformance_training.py` under either one.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

RECORDED = Path(__file__).parent / "recorded"
WRITER = "embedded" if getattr(detectron2, "EMBEDDED", False) else "original"
STOP, END = 3, 8


@META_ARCH_REGISTRY.register()
class ConformanceNet(nn.Module):
    def __init__(self, cfg) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)
        for number, parameter in enumerate(self.parameters()):
            parameter.data.copy_(torch.arange(parameter.numel()).view_as(parameter).add(number).cos())

    def forward(self, batch):
        return {"loss": self.second(self.first(batch).tanh()).square().mean()}


class Trainer(DefaultTrainer):
    """Every batch is the same, so that only parameters, optimiser and schedule carry the training on."""

    @classmethod
    def build_train_loader(cls, cfg):
        return [torch.arange(15.0).view(5, 3).sin()] * 100


def trainer(folder, iterations):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "ConformanceNet", "cpu", str(folder)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 0.1, 0.9, 2, (5,)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.DATASETS.TEST = iterations, 1000, ()
    return Trainer(cfg)


class Stop(HookBase):
    def after_step(self):
        if self.trainer.iter == STOP - 1:
            self.trainer.checkpointer.save("stopped", iteration=STOP - 1)
            raise KeyboardInterrupt


def stopped(folder):
    """A training of END iterations, stopped after STOP of them. -> the path of its checkpoint"""
    run = trainer(folder, END)
    run.register_hooks([Stop()])
    with contextlib.suppress(KeyboardInterrupt):
        run.train()
    return Path(folder) / "stopped.pth"


@pytest.fixture
def uninterrupted(tmp_path):
    run = trainer(tmp_path / "whole", END)
    run.resume_or_load(resume=False)
    run.train()
    return run.model.state_dict()


@pytest.mark.parametrize("writer", ["original", "embedded"])
def test_a_stopped_training_goes_on(tmp_path, uninterrupted, writer):
    folder = tmp_path / "stopped"
    folder.mkdir()
    shutil.copy(RECORDED / f"stopped_by_{writer}.pth", folder / "stopped.pth")
    (folder / "last_checkpoint").write_text("stopped.pth")
    run = trainer(folder, END)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.resume_or_load(resume=True)
    assert run.start_iter == STOP
    run.train()
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, uninterrupted[name], rtol=1e-6, atol=1e-7)
        assert not torch.allclose(value, before[name], atol=1e-3)


def test_the_checkpoints_of_both_have_the_same_contents():
    ours, theirs = (
        torch.load(RECORDED / f"stopped_by_{writer}.pth", weights_only=True) for writer in ("embedded", "original")
    )
    assert contents(ours) == contents(theirs)


def contents(value, path=""):
    """-> the sorted paths of everything in nested dicts and lists."""
    if isinstance(value, dict):
        return sorted([path, *(p for key, one in value.items() for p in contents(one, f"{path}/{key}"))])
    if isinstance(value, (list, tuple)):
        return sorted([path, *(p for i, one in enumerate(value) for p in contents(one, f"{path}/{i}"))])
    return [path]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(stopped(folder), RECORDED / f"stopped_by_{WRITER}.pth")
