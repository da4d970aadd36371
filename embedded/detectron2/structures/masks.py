"""Instance masks, as bitmaps or as polygons.

N instances, H W size of the image. A polygon is a flat array x0, y0, x1, y1, ... in continuous coordinates; an
instance may consist of several.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from .boxes import Boxes


def polygons_to_bitmask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Draw the polygons of one instance as COCO does.

    Returns:
        (height, width) bool; all False without polygons.
    """
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    parts = mask_util.frPyObjects([np.asarray(p, dtype=np.float64).tolist() for p in polygons], height, width)
    return mask_util.decode(mask_util.merge(parts)).astype(bool)


class BitMasks:
    """One bitmap for each instance.

    Attributes:
        tensor: (N, H, W) bool.
        image_size: (H, W).
    """

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
        values = torch.as_tensor(tensor).to(torch.bool)
        if values.dim() != 3:
            raise ValueError(f"Bit masks are given as (N, H, W), got shape {tuple(values.shape)}.")
        self.tensor = values
        self.image_size = (int(values.shape[1]), int(values.shape[2]))

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | list[list[np.ndarray]]", height: int, width: int
    ) -> "BitMasks":
        """Draw polygons on an image of (height, width)."""
        instances = polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        drawn = np.zeros((len(instances), height, width), dtype=bool)
        for row, polygons in zip(drawn, instances):
            row[:] = polygons_to_bitmask(polygons, height, width)
        return BitMasks(torch.from_numpy(drawn))

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def nonempty(self) -> Tensor:
        """(N,) bool, True where a mask has a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes, on the CPU: from the first pixel to the one after the last; zeros for an empty mask."""
        masks = self.tensor.cpu().numpy()
        boxes = np.zeros((len(masks), 4), dtype=np.float32)
        for box, mask in zip(boxes, masks):
            xs = np.flatnonzero(mask.any(axis=0))
            ys = np.flatnonzero(mask.any(axis=1))
            if len(xs):
                box[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
        return Boxes(boxes)

    def __getitem__(self, item: int | slice | Tensor) -> "BitMasks":
        """Select masks; an int gives `BitMasks` of length one."""
        return BitMasks(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each mask, (H, W) bool."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)}, image_size={self.image_size})"

    @staticmethod
    def cat(bitmasks_list: Sequence["BitMasks"]) -> "BitMasks":
        """All masks of at least one `BitMasks` in a row."""
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))


def _as_polygon(values: Any) -> np.ndarray:
    """A flat float64 array of at least three points."""
    if isinstance(values, Tensor):
        values = values.cpu().numpy()
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(flat) < 6 or len(flat) % 2:
        raise ValueError(
            f"Cannot create a polygon from {len(flat)} coordinates. Expected an even number, at least 6: three "
            "points. Repair or remove the annotation."
        )
    return flat


def _shoelace(polygon: np.ndarray) -> float:
    x, y = polygon[0::2], polygon[1::2]
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


class PolygonMasks:
    """A list of polygons for each instance.

    Attributes:
        polygons: N lists of flat float64 arrays; a list may be empty.
    """

    def __init__(self, polygons: list[list[Any]]) -> None:
        """
        Raises:
            ValueError: if it is not a list of lists, or a polygon has less than three points or half a point.
        """
        if not isinstance(polygons, list):
            raise ValueError(
                f"Cannot create PolygonMasks: expected a list with a list of polygons for each instance, "
                f"got {type(polygons).__name__}."
            )
        for instance in polygons:
            if not isinstance(instance, list):
                raise ValueError(
                    f"Cannot create PolygonMasks: expected a list of polygons for each instance, "
                    f"got {type(instance).__name__}. Use BitMasks for masks that are no polygons."
                )
        self.polygons = [[_as_polygon(polygon) for polygon in instance] for instance in polygons]

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Polygons live on the CPU: nothing moves."""
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def nonempty(self) -> Tensor:
        """(N,) bool, True where an instance has a polygon."""
        return torch.tensor([len(instance) > 0 for instance in self.polygons], dtype=torch.bool)

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes; the upper corner is never below 0, and (inf, inf, 0, 0) stands for no polygon."""
        boxes = np.empty((len(self.polygons), 4), dtype=np.float32)
        boxes[:, :2], boxes[:, 2:] = np.inf, 0
        for box, instance in zip(boxes, self.polygons):
            if instance:
                points = np.concatenate(instance).reshape(-1, 2)
                box[:2] = points.min(axis=0)
                box[2:] = points.max(axis=0).clip(min=0)
        return Boxes(boxes)

    def area(self) -> Tensor:
        """(N,) float64: the areas of an instance's polygons added up."""
        return torch.tensor([sum(map(_shoelace, instance)) for instance in self.polygons], dtype=torch.float64)

    def __getitem__(self, item: int | slice | list[int] | np.ndarray | Tensor) -> "PolygonMasks":
        """Select instances; an int gives `PolygonMasks` of length one."""
        positions = np.arange(len(self.polygons))[item.cpu().numpy() if isinstance(item, Tensor) else item]
        return PolygonMasks([self.polygons[i] for i in np.atleast_1d(positions)])

    def __len__(self) -> int:
        return len(self.polygons)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the polygons of each instance."""
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self.polygons)})"

    @classmethod
    def cat(cls, polymasks_list: Sequence["PolygonMasks"]) -> "PolygonMasks":
        """All instances in a row."""
        return cls([instance for masks in polymasks_list for instance in masks.polygons])
