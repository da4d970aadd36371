"""LVIS: the name only."""

from typing import Any

from detectron2._unsupported import refuse
from detectron2.evaluation.evaluator import DatasetEvaluator


class LVISEvaluator(DatasetEvaluator):
    """Present so that imports succeed; building one raises."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("evaluation.LVISEvaluator")
