"""Cityscapes' own instance and semantic scores, through cityscapesscripts."""

from detectron2.evaluation import DatasetEvaluator


class CityscapesInstanceEvaluator(DatasetEvaluator):
    pass


class CityscapesSemSegEvaluator(DatasetEvaluator):
    pass
