"""What detectron2's evaluators lack."""

from mask2former.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator

__all__ = ["CityscapesInstanceEvaluator", "CityscapesSemSegEvaluator", "InstanceSegEvaluator"]
