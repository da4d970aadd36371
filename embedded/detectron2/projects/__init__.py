"""Projects of detectron2 that Mask2Former uses: deeplab and point_rend."""

from detectron2._unsupported import missing

__getattr__ = missing(__name__)
