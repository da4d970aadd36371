"""What the benchmarks share: models with fixed weights, alternating measurements, tables and JSON."""

import argparse
import importlib.util
import json
import logging
import multiprocessing
import pickle
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config
from mask2former.checkpoint import Mask2FormerCheckpointer

ROOT = Path(__file__).parent.parent
CONFIGS = {
    "r50": "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "swin_t": "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
    "r50_panoptic": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "r50_semantic": "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
}


def arguments(description: str, *, gpu: bool = False) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes, and `--device` for those that can run on a GPU."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each side, taken in turn")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as PyTorch chooses")
    if gpu:
        parser.add_argument("--device", default="cpu", help="or cuda")
    parser.add_argument("--json", type=Path, help="write the table to this file as well")
    return parser


def fill_module() -> ModuleType:
    """The tests' reproducible weights: untrained, but with logits and masks as varied as a trained model's."""
    spec = importlib.util.spec_from_file_location("fill", ROOT / "tests" / "golden" / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(config: str, *options: Any, weights: str | None = None, device: str = "cpu") -> torch.nn.Module:
    """A model in evaluation mode.

    Args:
        config: a name in `CONFIGS` or a path.
        weights: a checkpoint; by default the weights are the tests'.
    """
    logging.disable(logging.WARNING)
    path = ROOT / "configs" / CONFIGS[config] if config in CONFIGS else Path(config)
    model = build_model(configuration(path, *options, "MODEL.DEVICE", device))
    if weights:
        Mask2FormerCheckpointer(model).load(weights)
        return model.eval()
    return fill_module().fill_(model).eval()


def configuration(path: Path, *options: Any) -> CfgNode:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(list(options))
    metadata = MetadataCatalog.get("benchmark")
    metadata.thing_dataset_id_to_contiguous_id = {i: i for i in range(80)}
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("benchmark",), ("benchmark",)
    return cfg


def image(height: int, width: int) -> torch.Tensor:
    """(3, height, width) uint8, with structure at several scales."""
    return fill_module().image(height, width, 0)


class Worker:
    """One side of a comparison in a process of its own, with an allocator of its own.

    In one process, what a side frees decides whether the next has to map its memory anew.

    Args:
        make: builds the side in that process; its method `run` is what `alternate` measures.
        args: for `make`; like it, of what can be pickled.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, torch.get_num_threads(), make, args), daemon=True)
        self.process.start()
        far.close()
        self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self.process.join()

    def ask(self, method: str) -> Any:
        """What the side's method returns; `"timed"` is wall and CPU seconds of its `run`."""
        self.connection.send(method)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return pickle.loads(self.connection.recv_bytes())
        except EOFError:
            self.process.join()
            raise SystemExit(f"a side's process ended with {self.process.exitcode}; its error is above") from None


def _serve(connection: Connection, threads: int, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Build a side and answer until the other end closes."""
    torch.set_num_threads(threads)
    side = make(*args)
    answer = None
    while True:
        # By value: the connection's own pickling would share tensors' memory.
        connection.send_bytes(pickle.dumps(answer))
        del answer
        try:
            method = connection.recv()
        except EOFError:
            return
        answer = timed(side.run) if method == "timed" else getattr(side, method)()


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the wall, and of all of this process's threads together; a GPU has then done its work."""
    settle()
    start = time.perf_counter(), time.process_time()
    run()
    settle()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def settle() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def gpu_peak(run: Callable[[], Any]) -> float:
    """GB of the GPU taken above what is taken now."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def clock(device: str) -> str:
    """Which of the two measured times tells sides apart: CPU seconds on a shared machine, the wall's beside a GPU."""
    return "wall" if device == "cuda" else "cpu"


def alternate(sides: Mapping[str, Worker | Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Run all sides in turn, once unmeasured; medians of seconds: "wall", and "cpu" of all threads together."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(1 + repeats):
        for name, side in sides.items():
            seconds[name].append(side.ask("timed") if isinstance(side, Worker) else timed(side))
    medians = {name: map(statistics.median, zip(*measured[1:], strict=True)) for name, measured in seconds.items()}
    return {name: dict(zip(("wall", "cpu"), both, strict=True)) for name, both in medians.items()}


def matmul_rate(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Multiply-adds count two: 1e9 operations per second of a square matrix product (see `clock`)."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    measured = alternate({"matmul": lambda: a @ b}, 5)
    return 2 * size**3 / measured["matmul"][clock(device)] / 1e9


def report(title: str, rows: list[dict[str, Any]], path: Path | None) -> None:
    """Print rows as a table; write them with the machine to `path`."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_shown(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (columns, *cells)
    ]
    sys.stdout.write("\n".join([title, *lines, ""]))
    if path:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "isa": torch.backends.cpu.get_cpu_capability(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        }
        path.write_text(json.dumps({"title": title, "machine": machine, "rows": rows}, indent=1))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
