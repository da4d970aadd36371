"""Registries, processes, seeds, files, logs, memory, pickling, statistics."""

import io
import logging
import pickle
import random
import re
from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from detectron2.utils import comm
from detectron2.utils.env import TORCH_VERSION, seed_all_rng
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table, log_every_n, log_every_n_seconds, log_first_n, setup_logger
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper
from torch import nn

only_embedded = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream differs on purpose")


def test_registry():
    registry = Registry("THINGS")

    @registry.register()
    class One:
        pass

    assert registry.get("One") is One and "One" in registry and dict(registry) == {"One": One}
    with pytest.raises(AssertionError, match="An object named 'One' was already registered in 'THINGS' registry!"):
        registry.register(One)
    with pytest.raises(KeyError, match="No object named 'Two' found in 'THINGS' registry!"):
        registry.get("Two")


def test_locate():
    assert locate("torch.nn.Conv2d") is nn.Conv2d
    with pytest.raises(ImportError, match="Cannot dynamically locate object"):
        locate("torch.nn.Nonsense")


def test_communication_in_one_process():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_size(), comm.get_local_rank()) == (1, 0, 1, 0)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather("x") == ["x"] and comm.gather("x") == ["x"]
    losses = {"b": torch.tensor(2.0)}
    assert comm.reduce_dict(losses) is losses
    np.random.seed(5)
    expected = np.random.randint(2**31)
    np.random.seed(5)
    assert comm.shared_random_seed() == expected


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    try:
        comm.get_local_rank()
        raise SystemExit("a local rank without groups")
    except AssertionError:
        pass
    comm.create_local_process_group(2)
    assert (comm.get_local_rank(), comm.get_local_size()) == (rank, 2)
    assert comm.is_main_process() == (rank == 0)
    assert comm.all_gather({"rank": rank, "data": "x" * rank * 1000})[1]["data"] == "x" * 1000
    assert comm.gather(rank, dst=1) == ([0, 1] if rank == 1 else [])
    assert comm.gather(torch.tensor(rank)) == ([torch.tensor(0), torch.tensor(1)] if rank == 0 else [])
    np.random.seed(rank)
    seeds = comm.all_gather(comm.shared_random_seed())
    np.random.seed(0)
    assert seeds == [np.random.randint(2**31)] * 2
    reduced = comm.reduce_dict({"b": torch.tensor(2.0 + rank), "a": torch.tensor(float(rank))})
    if rank == 0:
        assert {name: value.item() for name, value in reduced.items()} == {"a": 0.5, "b": 2.5}
    comm.synchronize()
    _load_where_only_rank_0_sees_the_file(rank, folder)
    comm.synchronize()  # nobody leaves while the other still talks
    torch.distributed.destroy_process_group()


def _load_where_only_rank_0_sees_the_file(rank: int, folder: str) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    if not getattr(detectron2, "EMBEDDED", False):
        return
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, rank + 1.0)
    DetectionCheckpointer(net, folder).save("a", iteration=7)  # writes on rank 0 only
    nn.init.zeros_(net.weight)
    comm.synchronize()
    path = f"{folder}/a.pth" if rank == 0 else f"{folder}/elsewhere.pth"
    assert DetectionCheckpointer(net).load(path) == {"iteration": 7}
    assert net.weight.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_communication_of_two_processes(tmp_path: Path):
    mp.spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)


def test_seeds():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_all_rng(3)
    first = draw()
    assert draw() != first
    seed_all_rng(3)
    assert draw() == first
    seed_all_rng()
    fresh = draw()
    seed_all_rng()
    assert draw() != fresh
    assert tuple(int(part) for part in torch.__version__.split(".")[:2]) == TORCH_VERSION


def test_paths(tmp_path: Path):
    path = str(tmp_path / "a" / "b.txt")
    PathManager.mkdirs(str(tmp_path / "a"))
    with PathManager.open(path, "w") as file:
        file.write("text")
    assert PathManager.exists(path) and PathManager.isfile(path) and PathManager.isdir(str(tmp_path / "a"))
    assert PathManager.get_local_path(path) == path and PathManager.ls(str(tmp_path / "a")) == ["b.txt"]
    PathManager.rm(path)
    assert not PathManager.exists(path)


@only_embedded
def test_a_failed_download_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("iopath.common.file_io.download", offline)
    wanted = r"Cannot download https://dl.fbaipublicfiles.com/detectron2/some/model.pkl \(no network\)"
    with pytest.raises(FileNotFoundError, match=wanted + rf".*at {tmp_path}/detectron2/some/model.pkl: "):
        PathManager.get_local_path("detectron2://some/model.pkl")

    # Doing as told works.
    (tmp_path / "detectron2" / "some").mkdir(parents=True, exist_ok=True)
    (tmp_path / "detectron2" / "some" / "model.pkl").write_bytes(b"weights")
    with PathManager.open("detectron2://some/model.pkl", "rb") as file:
        assert file.read() == b"weights"


def test_setup_logger_writes_to_the_console_and_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    logger = setup_logger(str(tmp_path), name="test_of_log", abbrev_name="tol")
    assert setup_logger(str(tmp_path), name="test_of_log", abbrev_name="tol") is logger
    assert logger.level == logging.DEBUG and not logger.propagate
    logging.getLogger("test_of_log.part").info("hello")
    logger.warning("careful")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"\[\d\d/\d\d \d\d:\d\d:\d\d\] tol.part INFO: hello", lines[0])
    assert len(lines) == 2 and lines[1].endswith("tol WARNING: careful")  # set up twice, written once
    console = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert re.search(r"\[\d\d/\d\d \d\d:\d\d:\d\d tol.part\]: hello\n", console)
    assert re.search(r"WARNING .*careful", console)


def test_other_ranks_log_to_files_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture):
    setup_logger(str(tmp_path / "run.txt"), distributed_rank=2, name="test_of_rank").info("hello")
    assert "hello" in (tmp_path / "run.txt.rank2").read_text()
    assert capsys.readouterr().out == ""


def test_messages_that_are_said_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        for number in range(5):
            log_first_n(logging.INFO, f"first {number}", 2)
            log_first_n(logging.INFO, "same", key="message")
            log_first_n(logging.INFO, "same", key="message")
            log_every_n(logging.INFO, f"every {number}", 3)
            log_every_n_seconds(logging.INFO, f"seconds {number}", 1000)
    assert caplog.messages == ["first 0", "same", "every 0", "seconds 0", "first 1", "every 3"]
    assert caplog.records[0].name == __name__


def test_small_table():
    header, line, row = create_small_table({"AP": 12.34567, "PQ": 1.0}).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["AP", "PQ"]
    assert set(line) <= set("|:-") and [cell.strip() for cell in row.strip("|").split("|")] == ["12.346", "1.000"]


def test_retry_after_running_out_of_memory():
    calls = []

    def busy(value: int, fail: int) -> int:
        calls.append(value)
        if len(calls) <= fail:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return value + 1

    assert retry_if_cuda_oom(busy)(1, fail=2) == 2 and len(calls) == 3
    calls.clear()
    with pytest.raises(RuntimeError, match="out of memory"):
        retry_if_cuda_oom(busy)(1, fail=3)

    def broken():
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        retry_if_cuda_oom(broken)()


def test_lambdas_cross_process_boundaries():
    again = pickle.loads(pickle.dumps(PicklableWrapper(lambda value: value + 1)))
    assert again(2) == 3


class Toy(nn.Module):
    """Takes and returns what detection models do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, inputs: list[dict]):
        features = self.conv(torch.stack([item["image"] for item in inputs]))
        if self.training:
            return {"loss": features.mean()}
        tokens = features.flatten(2).transpose(1, 2)
        return [{"features": nn.functional.scaled_dot_product_attention(tokens, tokens, tokens), "height": 4}]


def test_model_statistics():
    from detectron2.utils.analysis import (
        FlopCountAnalysis,
        activation_count_operators,
        find_unused_parameters,
        flop_count_operators,
        parameter_count,
        parameter_count_table,
    )

    toy, inputs = Toy(), [{"image": torch.rand(3, 4, 5), "height": 4, "file_name": "x.jpg"}]
    assert flop_count_operators(toy, inputs)["conv"] == pytest.approx(3 * 4 * 20 / 1e9)
    assert activation_count_operators(toy, inputs) == pytest.approx({"conv": 4 * 20 / 1e6})
    assert toy.training
    assert find_unused_parameters(toy, inputs) == ["unused.weight", "unused.bias"]
    assert toy.conv.weight.grad is None
    assert parameter_count(toy)["conv"] == 16 and "conv.weight" in parameter_count_table(toy)
    counts = FlopCountAnalysis(toy.eval(), inputs)
    assert counts.by_operator()["conv"] == 240


@only_embedded
def test_attention_is_counted():
    from detectron2.utils.analysis import flop_count_operators

    counts = flop_count_operators(Toy(), [{"image": torch.rand(3, 4, 5)}])
    assert counts["scaled_dot_product_attention"] == pytest.approx(2 * 20 * 20 * 4 / 1e9)  # 20 tokens of 4 channels


def test_environment_report():
    from detectron2.utils.collect_env import collect_env_info

    assert torch.__version__ in collect_env_info()
    assert io.StringIO(collect_env_info()).readline()
