"""Mask2Former as a detectron2 extension."""

__version__ = "0.1.0"
