"""Helpers of the other packages. Import the submodule wanted: `from detectron2.utils import comm`."""

from detectron2._unsupported import missing

__getattr__ = missing(__name__)
