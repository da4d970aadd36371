"""Axis-aligned boxes.

Coordinates are continuous: an image of (H, W) spans [0, W] x [0, H], and a box (x0, y0, x1, y1) covers
(x1 - x0) * (y1 - y0).
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import Any

import numpy as np
import torch
from torch import Tensor

Box = list[float] | tuple[float, ...] | np.ndarray | Tensor


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are meant; the integers are part of dataset files."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: Box, from_mode: "BoxMode", to_mode: "BoxMode") -> Box:
        """Convert a box, or (N, 4) boxes, between XYXY_ABS and XYWH_ABS.

        Returns:
            A new box in the container it came in: list, tuple, array or tensor.

        Raises:
            ValueError: if a list or tuple has not four numbers, or an array or tensor no last axis of four.
            NotImplementedError: for relative and rotated boxes.
        """
        values: Any = np.asarray(box, dtype=np.float64) if isinstance(box, (list, tuple)) else box
        if from_mode == to_mode:
            return type(box)(box) if isinstance(box, (list, tuple)) else _copy(box)
        supported = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        if from_mode not in supported or to_mode not in supported:
            raise NotImplementedError(
                f"Boxes cannot be converted from {from_mode!r} to {to_mode!r}: only XYXY_ABS and XYWH_ABS are "
                "supported. Convert the annotations to absolute, axis-aligned boxes."
            )
        if values.ndim == 0 or values.shape[-1] != 4 or (values is not box and values.ndim != 1):
            raise ValueError(f"A box has 4 numbers, got {box!r}.")
        values = _copy(values)
        if to_mode == BoxMode.XYXY_ABS:
            values[..., 2:] += values[..., :2]
        else:
            values[..., 2:] -= values[..., :2]
        return type(box)(values.tolist()) if isinstance(box, (list, tuple)) else values


def _copy(box: np.ndarray | Tensor) -> np.ndarray | Tensor:
    return box.clone() if isinstance(box, Tensor) else box.copy()


class Boxes:
    """N boxes in XYXY_ABS.

    Attributes:
        tensor: (N, 4) float32.
    """

    def __init__(self, tensor: Tensor | np.ndarray | Sequence[Sequence[float]]) -> None:
        """Take (N, 4) numbers; anything without an element becomes (0, 4)."""
        values = torch.as_tensor(tensor).to(torch.float32)
        if values.numel() == 0:
            values = values.reshape(0, 4)
        if values.dim() != 2 or values.shape[1] != 4:
            raise ValueError(f"Boxes are given as (N, 4) numbers, got shape {tuple(values.shape)}.")
        self.tensor = values

    def clone(self) -> "Boxes":
        return Boxes(self.tensor.clone())

    def to(self, *args: Any, **kwargs: Any) -> "Boxes":
        return Boxes(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def _sides(self) -> Tensor:
        """(N, 2): width and height."""
        return self.tensor[:, 2:] - self.tensor[:, :2]

    def area(self) -> Tensor:
        """(N,)."""
        return self._sides().prod(dim=1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool, True where both sides are longer than `threshold`."""
        return (self._sides() > threshold).all(dim=1)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Move all corners into an image of (height, width), in place.

        Raises:
            AssertionError: if a coordinate is infinite or NaN.
        """
        assert torch.isfinite(self.tensor).all(), "Box tensor contains infinite or NaN!"
        height, width = box_size
        limit = self.tensor.new_tensor([width, height, width, height])
        self.tensor = torch.minimum(self.tensor.clamp(min=0), limit)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(N,) bool, True where a box sticks out of an image of (height, width) by less than the threshold."""
        height, width = box_size
        corner = self.tensor.new_tensor([width, height]) + boundary_threshold
        return (self.tensor[:, :2] >= -boundary_threshold).all(1) & (self.tensor[:, 2:] < corner).all(1)

    def get_centers(self) -> Tensor:
        """(N, 2): x and y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply coordinates, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def __getitem__(self, item: int | slice | Tensor) -> "Boxes":
        """Select boxes; an int gives `Boxes` of length one."""
        return Boxes(self.tensor[item].reshape(-1, 4) if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each box as a tensor of shape (4,)."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    @classmethod
    def cat(cls, boxes_list: Sequence["Boxes"]) -> "Boxes":
        """All boxes in a row; no boxes for an empty list."""
        if len(boxes_list) == 0:
            return cls(torch.empty(0))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]))


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M): area that a box of the first and a box of the second share."""
    ours, theirs = boxes1.tensor[:, None], boxes2.tensor[None]
    corner_min = torch.maximum(ours[..., :2], theirs[..., :2])
    corner_max = torch.minimum(ours[..., 2:], theirs[..., 2:])
    return (corner_max - corner_min).clamp(min=0).prod(dim=2)


def _ratio(shared: Tensor, whole: Tensor) -> Tensor:
    """`shared / whole`, 0 where nothing is shared (also where `whole` is 0)."""
    return torch.where(shared > 0, shared / whole, torch.zeros_like(shared))


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M): intersection over union."""
    shared = pairwise_intersection(boxes1, boxes2)
    return _ratio(shared, boxes1.area()[:, None] + boxes2.area() - shared)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M): intersection over the area of the second box."""
    shared = pairwise_intersection(boxes1, boxes2)
    return _ratio(shared, boxes2.area().expand_as(shared))
