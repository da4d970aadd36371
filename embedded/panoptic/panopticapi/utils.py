"""Segment ids as colours of a PNG: id = R + 256 G + 65536 B."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

MAX_ID = 256**3 - 1


@overload
def rgb2id(color: np.ndarray) -> np.ndarray: ...
@overload
def rgb2id(color: Sequence[int]) -> int: ...
def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """Read ids off colours.

    Args:
        color: an (H, W, 3) image, or one (R, G, B).

    Returns:
        (H, W) int32 ids, or one int.
    """
    if isinstance(color, np.ndarray) and color.ndim == 3:
        ids = color[..., 2].astype(np.int32)
        for channel in (1, 0):
            ids <<= 8
            ids |= color[..., channel]
        return ids
    red, green, blue = (int(channel) for channel in color)
    return red + (green << 8) + (blue << 16)


def id2rgb(id_map: np.ndarray | int) -> np.ndarray | list[int]:
    """Write ids as colours.

    Args:
        id_map: (H, W) ids in 0..2^24 - 1, or one.

    Returns:
        (H, W, 3) uint8, or [R, G, B].

    Raises:
        ValueError: an id that three bytes cannot hold.
    """
    ids = np.asarray(id_map)
    if ids.size and (ids.min() < 0 or ids.max() > MAX_ID):
        raise ValueError(f"ids go from {ids.min()} to {ids.max()}; a colour holds 0 to {MAX_ID}")
    colors = np.stack([(ids >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    return colors if isinstance(id_map, np.ndarray) else colors.tolist()


class IdGenerator:
    """Hands out ids (colours) that no other segment of the image has.

    Args:
        categories: by id, with "isthing" and "color" each. Stuff always gets the colour of its category; things get it
            once and then colours near to it. Black means "no segment" and is never given to a thing.
    """

    def __init__(self, categories: Mapping[int, Mapping[str, Any]]) -> None:
        self.categories = categories
        self.taken_colors: set[tuple[int, ...]] = {(0, 0, 0)}
        self.taken_colors |= {tuple(c["color"]) for c in categories.values() if c["isthing"] == 0}

    def get_color(self, cat_id: int) -> list[int]:
        """A colour for a new segment of the category."""
        category = self.categories[cat_id]
        base = [int(channel) for channel in category["color"]]
        if category["isthing"] == 0:
            return base
        color = base
        while tuple(color) in self.taken_colors:
            color = np.clip(np.random.randint(-30, 31, size=3) + base, 0, 255).tolist()
        self.taken_colors.add(tuple(color))
        return color

    def get_id(self, cat_id: int) -> int:
        """An id for a new segment of the category."""
        return rgb2id(self.get_color(cat_id))

    def get_id_and_color(self, cat_id: int) -> tuple[int, list[int]]:
        """An id for a new segment of the category, and its colour."""
        color = self.get_color(cat_id)
        return rgb2id(color), color


def save_json(d: Any, file: str | Path) -> None:
    """Write `d` to `file` as JSON."""
    Path(file).write_text(json.dumps(d))
