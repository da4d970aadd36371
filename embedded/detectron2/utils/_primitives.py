"""The picture being drawn, and what can be drawn on it: masks, boxes, lines, text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from . import _canvas as draw
from ._canvas import RGB, Color, mix, parse_color
from ._masks import GenericMask, to_numpy, without_small_parts
from .colormap import NUM_COLORS, colormap

_SMALL_AREA = 1000  # pixels of the picture; a label would hide an object smaller than this
_LARGE_FACTOR = 1.6  # an object this many times as large as its label can carry it
_PIXELS_PER_POINT = 1.35


class VisImage:
    """The picture being drawn.

    Args:
        img: (H, W, 3) RGB, 0 to 255. Assigning to `.img` starts the picture afresh from another image.
        scale: the picture is this many times larger than the image.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.scale = scale
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Start afresh from `img` (H, W, 3)."""
        self._img = to_rgb(img)
        self.height, self.width = self._img.shape[:2]
        size = max(1, int(self.width * self.scale + 0.01)), max(1, int(self.height * self.scale + 0.01))
        smooth = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        self.canvas = self._img.copy() if self.scale == 1 else cv2.resize(self._img, size, interpolation=smooth)
        self.labels: list[draw.Box] = []  # where the picture has text already

    @property
    def img(self) -> np.ndarray:
        return self._img

    @img.setter
    def img(self, img: np.ndarray) -> None:
        self.reset_image(img)

    def save(self, filepath: str | Path) -> None:
        """Write the picture in the format that the name ends in."""
        Image.fromarray(self.canvas).save(filepath)

    def get_image(self) -> np.ndarray:
        """(H * scale, W * scale, 3) uint8 RGB."""
        return self.canvas.copy()


class Region(NamedTuple):
    """A mask to draw, and how."""

    mask: GenericMask
    color: RGB
    text: str | None
    alpha: float
    edge: RGB | None = None  # None: a lighter shade of the colour


class Primitives:
    """Drawing on `self.output`, the picture of an image; every method that draws returns the picture so far.

    Args:
        img: (H, W, 3) RGB, 0 to 255.
        scale: the picture is this many times larger than the image.
        font_size_scale: makes the letters larger or smaller.
    """

    def __init__(self, img: np.ndarray, scale: float, font_size_scale: float) -> None:
        self.img = to_rgb(img)
        self.output = VisImage(self.img, scale)
        side = float(np.sqrt(self.output.height * self.output.width))
        self._default_font_size = max(side // 90, 10 / scale) * font_size_scale
        self._line_width = max(1, round(side * scale / 500))

    def draw_binary_mask(
        self, binary_mask: Any, color: Color | None = None, *, edge_color: Color | None = None, text: str | None = None,
        alpha: float = 0.5, area_threshold: int = 10,
    ) -> VisImage:  # fmt: skip
        """Draw one (H, W) mask; its parts of fewer than `area_threshold` pixels are left out."""
        mask = GenericMask(binary_mask, self.output.height, self.output.width)
        edge = None if edge_color is None else parse_color(edge_color)
        color = self._palette(1)[0] if color is None else parse_color(color)
        return self._draw_regions([Region(mask, color, text, alpha, edge)], area_threshold)

    def draw_soft_mask(
        self, soft_mask: Any, color: Color | None = None, *, text: str | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Draw a (H, W) mask of values between 0 and 1: the larger the value, the more of the colour."""
        color = self._palette(1)[0] if color is None else parse_color(color)
        canvas = self.output.canvas
        soft = cv2.resize(to_numpy(soft_mask).astype(np.float32), canvas.shape[1::-1])[..., None] * np.float32(alpha)
        canvas[:] = np.round(canvas * (1 - soft) + np.array(draw.to_bytes(color), np.float32) * soft)
        if text:
            self._draw_label(text, color, mask=GenericMask(soft_mask, self.output.height, self.output.width))
        return self.output

    def draw_text(
        self, text: str, position: Sequence[float], *, font_size: float | None = None, color: Color = "g",
        horizontal_alignment: str = "center", rotation: float = 0,
    ) -> VisImage:  # fmt: skip
        """Write text on a dark box with its top edge at `position` (x, y), moved into the image where it sticks out.

        `horizontal_alignment` ("left", "center", "right") says which part of the text lies at x; `rotation` is in
        degrees, anticlockwise.
        """
        opacity = draw.text_mask(text, self._font_pixels(font_size))
        if rotation % 360:
            opacity = np.array(
                Image.fromarray(opacity).rotate(rotation, expand=True, resample=Image.Resampling.BICUBIC)
            )
        size = opacity.shape[1] + 2 * self._padding, opacity.shape[0] + 2 * self._padding
        if horizontal_alignment not in ("left", "center", "right"):
            raise ValueError(f'horizontal_alignment must be "left", "center" or "right", not {horizontal_alignment!r}')
        shift = {"left": size[0] / 2, "center": 0.0, "right": -size[0] / 2}[horizontal_alignment]
        center = np.array([[position[0] * self.output.scale + shift, position[1] * self.output.scale + size[1] / 2]])
        corner = draw.choose_place(center, size, [], self.output.canvas)
        box = draw.paint_label(self.output.canvas, opacity, corner, parse_color(color), self._padding)
        self.output.labels.append(box)
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the frame of x0, y0, x1, y1; every `line_style` but "-" is dashed."""
        x0, y0, x1, y1 = (float(edge) for edge in box_coord)
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        return self._lines(corners, edge_color, alpha=alpha, closed=True, dashed=line_style != "-")

    def draw_rotated_box_with_label(
        self, rotated_box: Sequence[float], alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-",
        label: str | None = None,
    ) -> VisImage:  # fmt: skip
        """Draw the frame of x centre, y centre, width, height and angle in degrees, anticlockwise."""
        corners = self._outline(np.asarray(rotated_box, dtype=float))
        self._lines(corners, edge_color, alpha=alpha, closed=True, dashed=line_style != "-")
        if label:
            self._draw_label(label, parse_color(edge_color), box=corners)
        return self.output

    def draw_circle(self, circle_coord: Sequence[float], color: Color, radius: float = 3) -> VisImage:
        """Draw a filled circle around (x, y)."""
        turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        outline = np.array(circle_coord, dtype=float)[:2] + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        return self._lines(outline, color, filled=True)

    def draw_line(
        self, x_data: Sequence[float], y_data: Sequence[float], color: Color, linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:  # fmt: skip
        """Draw the line through the points; every `linestyle` but "-" is dashed."""
        points = np.stack([np.asarray(x_data, dtype=float), np.asarray(y_data, dtype=float)], axis=1)
        return self._lines(points, color, dashed=linestyle != "-", width=linewidth)

    def draw_polygon(self, segment: Any, color: Color, edge_color: Color | None = None, alpha: float = 0.5) -> VisImage:
        """Draw a filled polygon, (N, 2) x and y, and its outline."""
        corners = np.asarray(segment, dtype=float).reshape(-1, 2)
        self._lines(corners, color, alpha=alpha, filled=True)
        return self._lines(corners, color if edge_color is None else edge_color, closed=True)

    def get_output(self) -> VisImage:
        return self.output

    def _change_color_brightness(self, color: Color, brightness_factor: float) -> RGB:
        """Lighten (factor up to 1) or darken (down to -1) a colour."""
        target = (1.0, 1.0, 1.0) if brightness_factor > 0 else (0.0, 0.0, 0.0)
        return mix(parse_color(color), target, abs(brightness_factor))

    def _palette(self, count: int) -> list[RGB]:
        return [parse_color(colormap(rgb=True, maximum=1)[i % NUM_COLORS]) for i in range(count)]

    def _draw_regions(self, regions: list[Region], area_threshold: int) -> VisImage:
        """Draw masks, the largest first and things over stuff, and then all labels, so that no mask covers one."""
        if area_threshold > 1:
            regions = [r._replace(mask=without_small_parts(r.mask, area_threshold)) for r in regions]
        areas = [region.mask.area() for region in regions]
        shown = [i for i in np.argsort(areas, kind="stable")[::-1] if areas[i] > 0]
        shown.sort(key=lambda i: regions[i].edge is None)  # stuff, whose edge is set, keeps to the background
        scale = self.output.scale
        for i in shown:
            crop, corner = regions[i].mask.crop(scale)
            edge, width = regions[i].edge, max(1, self._line_width // 2)
            if edge is None:
                edge, width = self._change_color_brightness(regions[i].color, 0.35), self._line_width
            draw.paint_mask(self.output.canvas, crop, corner, regions[i].color, regions[i].alpha)
            draw.paint_contours(self.output.canvas, crop, corner, edge, width)
        # Small objects have the least choice of places: they come first.
        for i in sorted(shown, key=lambda i: areas[i]):
            if regions[i].text:
                self._draw_label(regions[i].text, regions[i].color, mask=regions[i].mask)
        return self.output

    def _draw_label(
        self, text: str, color: RGB, *, mask: GenericMask | None = None, box: np.ndarray | None = None
    ) -> None:
        """Write a label inside a mask, or beside it if it is tiny; or at a box, whose corners are given."""
        opacity = draw.fitting_text(text, self._font_pixels(), self.output.canvas, self._padding)
        if opacity is None:
            return
        size = np.array([opacity.shape[1], opacity.shape[0]]) + 2 * self._padding
        if mask is not None:
            places = self._places_at_mask(mask, size)
        else:
            assert box is not None
            places = self._places_at_box(box, size)
        # A place beyond the border would be moved back, onto the object: only if there is nothing better.
        limit = np.array(self.output.canvas.shape[1::-1])
        fits = ((places - size / 2 >= 0) & (places + size / 2 <= limit)).all(1)
        places = np.concatenate([places[fits], places[~fits]])
        corner = draw.choose_place(places, tuple(size.tolist()), self.output.labels, self.output.canvas)
        self.output.labels.append(draw.paint_label(self.output.canvas, opacity, corner, color, self._padding))

    def _places_at_mask(self, mask: GenericMask, size: np.ndarray) -> np.ndarray:
        """(N, 2) centres for a label of `size` (width, height): inside the mask first, or beside it if it is small."""
        crop, corner = mask.crop(self.output.scale)
        if not crop.any():  # lost when the picture was scaled down
            crop = np.ones_like(crop)
        inside = draw.inner_points(crop) + corner
        beside = _beside(mask.bbox().reshape(2, 2) * self.output.scale, size)
        small = np.count_nonzero(crop) < max(_SMALL_AREA * self.output.scale, _LARGE_FACTOR * size.prod())
        return np.concatenate([beside, inside] if small else [inside, beside])

    def _places_at_box(self, corners: np.ndarray, size: np.ndarray) -> np.ndarray:
        """(N, 2) centres for a label of `size`: on the upper left corner of the box, in it, or beside it."""
        corners = np.stack([corners.min(0), corners.max(0)]) * self.output.scale
        at_corner = corners[0] + size / 2 * np.array([[1, -1], [1, 1]])
        return np.concatenate([at_corner, _beside(corners, size)])

    @property
    def _padding(self) -> int:
        return max(1, self._font_pixels() // 6)

    def _font_pixels(self, font_size: float | None = None) -> int:
        points = self._default_font_size if font_size is None else font_size
        return max(1, round(points * self.output.scale * _PIXELS_PER_POINT))

    def _outline(self, box: np.ndarray) -> np.ndarray:
        """(4, 2) corners of a box of 4 numbers, or of a rotated one of 5."""
        if len(box) == 5:
            return cv2.boxPoints(((box[0], box[1]), (box[2], box[3]), -box[4])).astype(float)
        return box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)

    def _lines(self, points: np.ndarray, color: Color, *, width: float | None = None, **how: Any) -> VisImage:
        width = self._line_width if width is None else max(1, round(width * self.output.scale))
        draw.paint_lines(self.output.canvas, points * self.output.scale, parse_color(color), width, **how)
        return self.output


def _beside(corners: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(4, 2) centres for a label of `size` above, below, right and left of a box, [[x0, y0], [x1, y1]]."""
    middle, reach = corners.mean(0), (corners[1] - corners[0] + size) / 2
    return middle + reach * np.array([[0, -1], [0, 1], [1, 0], [-1, 0]])


def to_rgb(img: Any) -> np.ndarray:
    img = to_numpy(img)
    if img.ndim != 3 or img.shape[2] != 3 or 0 in img.shape:
        raise ValueError(f"an image to draw on has the shape (height, width, 3), not {img.shape}")
    return np.ascontiguousarray(img.clip(0, 255).astype(np.uint8))
