"""One mask, whatever form it came in."""

from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch


class GenericMask:
    """One mask, whatever it came as.

    Args:
        mask_or_polygons: (h, w) array or tensor (bool, integers with 0 outside, floats with more than 0.5 inside),
            a list of polygons [x0, y0, x1, y1, ...], or a COCO run-length dict.
        height, width: the size of the image; ValueError where the mask has another.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._polygons: list[np.ndarray] | None = None
        self._has_holes = False
        self._box: tuple[int, int, int, int] | None = None
        if isinstance(mask_or_polygons, dict):
            self.mask = self._from_rle(mask_or_polygons)
        elif isinstance(mask_or_polygons, list):
            self._polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygon in mask_or_polygons]
            # Fewer than three points enclose nothing, and pycocotools would take four numbers for a box.
            rings = [polygon.tolist() for polygon in self._polygons if len(polygon) >= 6]
            self.mask = np.zeros((height, width), np.uint8)
            if rings:
                self.mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(rings, height, width)))
        else:
            self.mask = binary(to_numpy(mask_or_polygons))
        if self.mask.shape != (height, width):
            raise ValueError(f"a mask of size {self.mask.shape} was given for an image of size {(height, width)}")

    def _from_rle(self, rle: dict[str, Any]) -> np.ndarray:
        if isinstance(rle["counts"], list):
            rle = mask_util.frPyObjects(rle, *rle["size"])
        return mask_util.decode(rle)

    @property
    def polygons(self) -> list[np.ndarray]:
        """Outlines as flat arrays x0, y0, x1, y1, ... through the centres of the border pixels; those of holes too."""
        if self._polygons is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self.mask)
        return self._polygons

    @property
    def has_holes(self) -> bool:
        return bool(self.polygons) and self._has_holes

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Outlines of a (h, w) uint8 mask, and whether one of them surrounds a hole."""
        contours, hierarchy = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outlines = [contour.reshape(-1) + 0.5 for contour in contours if len(contour) >= 3]
        return outlines, hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())

    def area(self) -> int:
        return cv2.countNonZero(self.mask)

    def bbox(self) -> np.ndarray:
        """x0, y0, x1, y1; the last two are one past the last pixel. Zeros for an empty mask."""
        if self._box is None:
            x, y, width, height = cv2.boundingRect(self.mask)
            self._box = x, y, x + width, y + height
        return np.array(self._box)

    def crop(self, scale: float) -> tuple[np.ndarray, tuple[int, int]]:
        """The mask within its box, enlarged by `scale`, and where its top left pixel lies then."""
        x0, y0, x1, y1 = self.bbox().tolist()
        mask = self.mask[y0:y1, x0:x1]
        if scale == 1:
            return np.ascontiguousarray(mask), (x0, y0)
        left, top, right, bottom = (int(edge * scale) for edge in (x0, y0, x1, y1))
        size = max(1, right - left), max(1, bottom - top)
        enlarged = cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_LINEAR) > 127
        return enlarged.astype(np.uint8), (left, top)


def without_small_parts(mask: GenericMask, area: int) -> GenericMask:
    """Drop the connected parts of fewer than `area` pixels."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.mask, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= area
    keep[0] = False
    return GenericMask(keep[parts], mask.height, mask.width)


def to_numpy(array: Any) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def binary(mask: np.ndarray) -> np.ndarray:
    """uint8 0/1 of bools, of integers with 0 outside, or of floats with more than 0.5 inside."""
    inside = mask > 0.5 if mask.dtype.kind == "f" else mask != 0
    return np.ascontiguousarray(inside).view(np.uint8)
