"""Tests run offline, on one thread, and leave nothing behind."""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state."""
    import random

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_datasets(tmp_path_factory):
    """A folder with 8 + 4 images of shapes in `shapes`, 64 pixels wide."""
    scripts = Path(__file__).parents[1] / "datasets"
    sys.path.insert(0, str(scripts))  # as Python does for a script
    try:
        import prepare_shapes
    finally:
        sys.path.remove(str(scripts))
    root = tmp_path_factory.mktemp("datasets")
    prepare_shapes.make(root / "shapes", {"format": 1, "train": 8, "val": 4, "size": 64, "seed": 0})
    return root


@pytest.fixture
def tiny_shapes(tiny_datasets, monkeypatch):
    """The data sets `shapes_...` are those of `tiny_datasets`, here and in processes that a test starts."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from mask2former.data.datasets.register_shapes import register_all_shapes

    def register(root):
        for name in [name for name in DatasetCatalog.list() if name.startswith("shapes_")]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_all_shapes(str(root))

    before = os.getenv("DETECTRON2_DATASETS", "datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_datasets))
    register(tiny_datasets)
    yield tiny_datasets
    register(before)


def has_fast_coco_scores() -> bool:
    """Whether COCOEvaluator can score by default: the original does it in a compiled part, which not every copy has.

    A copy used from its sources may have a Python file in the compiled part's place.
    """
    import detectron2

    if getattr(detectron2, "EMBEDDED", False):
        return True
    spec = importlib.util.find_spec("detectron2._C")
    return spec is not None and str(spec.origin).endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))


@pytest.fixture(autouse=True)
def _slow_coco_scores(monkeypatch):
    """Without the compiled part, pycocotools scores: the original itself does so where importing that part fails."""
    if has_fast_coco_scores():
        return
    from detectron2.evaluation import coco_evaluation
    from pycocotools.cocoeval import COCOeval

    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", COCOeval)
