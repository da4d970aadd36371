"""What Mask2Former takes from PointRend: sampling at points, and SSD's colour augmentation."""

from .color_augmentation import ColorAugSSDTransform
from .point_features import get_uncertain_point_coords_with_randomness, point_sample

__all__ = ["ColorAugSSDTransform", "get_uncertain_point_coords_with_randomness", "point_sample"]
