"""LVIS: the name only."""

from typing import Any

from detectron2.evaluation.evaluator import DatasetEvaluator


class LVISEvaluator(DatasetEvaluator):
    """Present so that imports succeed; it cannot be built."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "LVISEvaluator is not part of this detectron2; evaluate on LVIS with upstream detectron2"
        )
