"""Mask2Former as a detectron2 extension.

Importing it registers the model's parts and the datasets; mappers, evaluators and the trainer are imported when used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

try:
    import detectron2 as _detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ModuleNotFoundError(
        "mask2former needs detectron2. Either run `pip install -r requirements.txt` in this project's folder, which "
        "installs the small embedded one, or install the original: https://detectron2.readthedocs.io.",
        name="detectron2",
    ) from None

from . import data as _data  # noqa: F401  registers the datasets
from .config import add_maskformer2_config
from .model import MaskFormer
from .setup_config import load_config

_LAZY = {
    "COCOInstanceNewBaselineDatasetMapper": "mask2former.data.mappers",
    "COCOPanopticNewBaselineDatasetMapper": "mask2former.data.mappers",
    "MaskFormerInstanceDatasetMapper": "mask2former.data.mappers",
    "MaskFormerPanopticDatasetMapper": "mask2former.data.mappers",
    "MaskFormerSemanticDatasetMapper": "mask2former.data.mappers",
    "InstanceSegEvaluator": "mask2former.evaluation",
    "SemanticSegmentorWithTTA": "mask2former.test_time_augmentation",
    "Trainer": "mask2former.trainer",
}

__all__ = ["MaskFormer", "add_maskformer2_config", "load_config", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mask2former' has no attribute '{name}'")
