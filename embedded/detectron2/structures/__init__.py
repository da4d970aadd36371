"""What the data pipeline hands to a model and the model hands back: boxes, masks, instances, padded batches."""

from detectron2._unsupported import missing, stub

from .boxes import Boxes, BoxMode, pairwise_intersection, pairwise_ioa, pairwise_iou
from .image_list import ImageList
from .instances import Instances
from .masks import BitMasks, PolygonMasks, polygons_to_bitmask

__all__ = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "ImageList",
    "Instances",
    "Keypoints",
    "PolygonMasks",
    "ROIMasks",
    "RotatedBoxes",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "polygons_to_bitmask",
]

# Of models that are not here.
Keypoints = stub("structures.Keypoints")
RotatedBoxes = stub("structures.RotatedBoxes")
ROIMasks = stub("structures.ROIMasks")

__getattr__ = missing(__name__)
