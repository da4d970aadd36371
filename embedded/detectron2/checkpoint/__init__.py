"""Reading and writing weights and the state of a run."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from detectron2._unsupported import missing
from detectron2.checkpoint.detection_checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]

__getattr__ = missing(__name__)
