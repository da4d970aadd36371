"""Cityscapes' own scores for instances and semantic segmentation: not written yet, names only."""

from typing import Any

from detectron2.evaluation.evaluator import DatasetEvaluator


class CityscapesEvaluator(DatasetEvaluator):
    """Present so that imports succeed; it cannot be built yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} is not written yet; score Cityscapes with COCOEvaluator, SemSegEvaluator or "
            "COCOPanopticEvaluator, or write predictions and run cityscapesscripts on them"
        )


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """Present so that imports succeed; it cannot be built yet."""


class CityscapesSemSegEvaluator(CityscapesEvaluator):
    """Present so that imports succeed; it cannot be built yet."""
