"""Cityscapes' own scores: the names only. The extension has them, for the embedded and for upstream detectron2."""

from typing import Any, NoReturn

from detectron2._unsupported import NotEmbeddedError
from detectron2.evaluation.evaluator import DatasetEvaluator


class CityscapesEvaluator(DatasetEvaluator):
    """Present so that imports succeed; building one raises."""

    def __init__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = type(self).__name__
        raise NotEmbeddedError(
            f"the embedded detectron2 has no {name} of its own: use mask2former's, which takes the same arguments "
            f"(from mask2former.evaluation import {name})",
            name=f"detectron2.evaluation.{name}",
        )


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """Present so that imports succeed; building one raises."""


class CityscapesSemSegEvaluator(CityscapesEvaluator):
    """Present so that imports succeed; building one raises."""
