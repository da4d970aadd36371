"""Mask AP for datasets whose thing classes are scattered among the stuff classes."""

from detectron2.evaluation import COCOEvaluator


class InstanceSegEvaluator(COCOEvaluator):
    pass
