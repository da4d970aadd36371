"""The slice of the detectron2 API that Mask2Former and ordinary user scripts need."""

__version__ = "0.6"
EMBEDDED = True
