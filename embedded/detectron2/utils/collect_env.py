"""Versions of everything that matters to a bug report: `python -m detectron2.utils.collect_env`."""

import importlib.metadata
import os
import platform
import sys

import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]

_PACKAGES = (
    "numpy",
    "scipy",
    "Pillow",
    "opencv-python-headless",
    "pycocotools",
    "faster-coco-eval",
    "fvcore",
    "iopath",
    "yacs",
    "numba",
    "triton",
)


def collect_env_info() -> str:
    """A table of versions and devices."""
    import detectron2

    rows = [
        ("platform", platform.platform()),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"{_version('detectron2')} @ {os.path.dirname(detectron2.__file__)}"),
        ("PyTorch", f"{torch.__version__} @ {os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", torch.version.debug),
        ("CPU threads", torch.get_num_threads()),
        ("CUDA available", torch.cuda.is_available()),
    ]
    if torch.cuda.is_available():
        rows += [("CUDA, cuDNN of PyTorch", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")]
        rows += [(f"GPU {index}", _gpu(index)) for index in range(torch.cuda.device_count())]
    rows += [(package, _version(package)) for package in _PACKAGES]
    rows += [("DETECTRON2_DATASETS", os.environ.get("DETECTRON2_DATASETS", "not set"))]
    return tabulate([(name, str(value)) for name, value in rows], disable_numparse=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu(index: int) -> str:
    gpu = torch.cuda.get_device_properties(index)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, capability {gpu.major}.{gpu.minor}"


if __name__ == "__main__":
    sys.stdout.write(collect_env_info() + "\n")
