"""tools/train_net.py as a user runs it: killed and resumed, in two processes, scoring only."""

import datetime
import importlib.util
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import detectron2
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from tiny import CONFIG, OPTIONS, ROOT, tiny_config

from mask2former.trainer import Trainer

SCRIPT = ROOT / "tools" / "train_net.py"
# Upstream's launch does not join the processes of torchrun, and several processes need a GPU each.
embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="not in upstream detectron2")


def words(output: Path, *options, flags: tuple = ()) -> list[str]:
    return ["--config-file", str(CONFIG), *flags, *OPTIONS, "OUTPUT_DIR", str(output), *map(str, options)]


def started(*command, **kwargs) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs,
    )  # fmt: skip


def finished(*command) -> str:
    process = started(*command)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def train_net():
    spec = importlib.util.spec_from_file_location("train_net", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_here(train_net):
    """The script's main function, in this process: no time to start one."""

    def run(*arguments: str):
        return train_net.main(train_net.default_argument_parser().parse_args(list(arguments)))

    return run


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def scores(folder: Path) -> dict[str, float]:
    last = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    return {name: value for name, value in last.items() if name.split("/")[0] in ("panoptic_seg", "segm", "sem_seg")}


def test_a_run_killed_twice_ends_as_if_it_had_not_been(tiny_shapes, tmp_path, run_here):
    """kill -9 at moments that differ from test to test; every time, what is on the disk can be resumed from."""
    options = ("SOLVER.MAX_ITER", 24, "SOLVER.CHECKPOINT_PERIOD", 2)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    moments = random.SystemRandom()
    reached = []
    for _ in range(2):
        process = started(SCRIPT, *words(killed, *options, flags=("--resume",)))
        last = killed / "last_checkpoint"
        before = last.read_text() if last.exists() else ""
        deadline = time.monotonic() + 60
        while (not last.exists() or last.read_text() == before) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        checkpoint = torch.load(killed / last.read_text(), weights_only=True)
        reached.append(checkpoint["iteration"] + 1)
    assert 2 <= reached[0] < reached[1] < 24

    run_here(*words(killed, *options, flags=("--resume",)))
    run_here(*words(whole, *options))
    end, same = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (killed, whole))
    assert end["iteration"] == same["iteration"] == 23
    assert all(torch.equal(value, same["model"][name]) for name, value in end["model"].items())
    assert (killed / "last_checkpoint").read_text() == "model_final.pth"
    assert not list(killed.glob("*.tmp*")) or all(path.stat().st_size for path in killed.glob("model_*.pth"))

    curve, uninterrupted = losses(killed), losses(whole)
    assert curve.keys() == uninterrupted.keys() == {19, 23}
    # Each is a median over the iterations since the process started, at most 20.
    assert all(curve[i] == pytest.approx(uninterrupted[i], rel=0.3) for i in curve)
    assert scores(killed) == pytest.approx(scores(whole), nan_ok=True)


@embedded_only
def test_two_processes_train_alike_and_score_as_one(tiny_shapes, tmp_path, run_here):
    script = tmp_path / "both.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import torch, train_net\n"
        "from detectron2.engine import default_argument_parser, launch\n"
        "from detectron2.utils import comm\n"
        "from mask2former.trainer import Trainer\n"
        "def main(args):\n"
        "    train = Trainer.train\n"
        "    def and_keep(self):\n"
        "        train(self)\n"
        "        state = {n: p.detach() for n, p in self.model.module.named_parameters()}\n"
        f"        torch.save(state, f'{tmp_path}/rank{{comm.get_rank()}}.pth')\n"
        "    Trainer.train = and_keep\n"
        "    train_net.main(args)\n"
        "if __name__ == '__main__':\n"
        "    launch(main, 1, args=(default_argument_parser().parse_args(),))\n"
    )
    both = tmp_path / "both"
    finished(
        "-m", "torch.distributed.run", "--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint",
        "localhost:0", script, *words(both, "SOLVER.MAX_ITER", 3),
    )  # fmt: skip
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())

    one = run_here(*words(tmp_path / "one", "MODEL.WEIGHTS", both / "model_final.pth", flags=("--eval-only",)))
    flat = {f"{task}/{name}": value for task, results in one.items() for name, value in results.items()}
    reported = scores(both)
    assert len(reported) > 20
    assert reported == pytest.approx({name: flat[name] for name in reported}, nan_ok=True)


class Halved(Trainer):
    """The first process has targets, the second has none."""

    @classmethod
    def build_train_loader(cls, cfg):
        batches = list(itertools.islice(Trainer.build_train_loader(cfg), 2))
        for image in itertools.chain(*batches):
            image["instances"] = image["instances"][: 0 if comm.get_rank() else None]
        return batches

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {}


def train_halved(rank: int, folder: Path) -> None:
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timeout)
    comm.create_local_process_group(2)
    trainer = Halved(tiny_config(folder / "out", "SOLVER.MAX_ITER", 2))
    trainer.train()
    total = sum(p.detach().double().sum() for p in trainer.model.parameters())
    assert len(set(comm.all_gather(total.item()))) == 1 and total.isfinite()
    dist.destroy_process_group()


@embedded_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks this process")
def test_a_process_whose_images_are_empty_does_not_stop_the_others(tiny_shapes, tmp_path):
    mp.start_processes(train_halved, args=(tmp_path,), nprocs=2, start_method="fork")
    assert (tmp_path / "out" / "model_final.pth").exists()


def test_scoring_only_reads_the_weights_and_trains_nothing(tiny_shapes, tmp_path, run_here):
    cfg = tiny_config(tmp_path)
    torch.manual_seed(1)
    model = Trainer.build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    results = run_here(*words(tmp_path / "out", "MODEL.WEIGHTS", tmp_path / "weights.pth", flags=("--eval-only",)))
    assert set(results) == {"panoptic_seg", "bbox", "segm", "sem_seg"}
    assert not list((tmp_path / "out").glob("model_*.pth"))
