"""Drawing on a uint8 RGB array with OpenCV and Pillow: masks, lines, and labels that look for a free place.

Coordinates are pixels of the canvas, x to the right and y down; colours are RGB floats in [0, 1].
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

Color = str | Sequence[float] | np.ndarray
RGB = tuple[float, float, float]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1; the last two lie outside

_ONE_LETTER = {
    "r": "red", "g": "green", "b": "blue", "c": "cyan", "m": "magenta", "y": "yellow", "k": "black", "w": "white",
}  # fmt: skip
_SUBPIXEL_BITS = 4
_SMALLEST_FONT = 7  # pixels; below it text is noise
_INNER_SIDE = 48  # masks are shrunk to this side to look for the place of a label
_NUM_PLACES = 16


def parse_color(color: Color) -> RGB:
    """Read a colour: RGB or RGBA floats in [0, 1], a name, a one-letter name, or "#rrggbb"."""
    if isinstance(color, str):
        red, green, blue = ImageColor.getrgb(_ONE_LETTER.get(color, color))[:3]
        return red / 255, green / 255, blue / 255
    values = [float(c) for c in color]
    if len(values) not in (3, 4) or min(values) < 0 or max(values) > 1:
        raise ValueError(f"a colour is a name or 3 or 4 numbers between 0 and 1, not {color!r}")
    return values[0], values[1], values[2]


def mix(color: RGB, other: RGB, amount: float) -> RGB:
    """`amount` 0 gives `color`, 1 gives `other`."""
    return tuple(a + (b - a) * amount for a, b in zip(color, other))  # type: ignore[return-value]


def to_bytes(color: RGB) -> tuple[int, int, int]:
    return tuple(round(255 * c) for c in color)  # type: ignore[return-value]


def paint_mask(canvas: np.ndarray, mask: np.ndarray, corner: tuple[int, int], color: RGB, alpha: float) -> None:
    """Blend a colour into the canvas where `mask` (h, w uint8 0/1, its top left pixel at `corner`) is set."""
    x, y = corner
    roi = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
    fill = np.empty_like(roi)
    fill[:] = to_bytes(color)
    cv2.copyTo(cv2.addWeighted(roi, 1 - alpha, fill, alpha, 0), mask, roi)


def paint_contours(canvas: np.ndarray, mask: np.ndarray, corner: tuple[int, int], color: RGB, width: int) -> None:
    """Draw the outlines of `mask`, those of its holes too, anti-aliased; not along the border of the canvas."""
    (x, y), (height, length) = corner, mask.shape
    # Where the mask reaches the border it is continued, so that its outline lies beyond.
    inside = y > 0, y + height < canvas.shape[0], x > 0, x + length < canvas.shape[1]
    top, bottom, left, right = (0 if within else width + 1 for within in inside)
    mask, corner = cv2.copyMakeBorder(mask, top, bottom, left, right, cv2.BORDER_REPLICATE), (x - left, y - top)
    contours = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(canvas, contours, -1, to_bytes(color), width, cv2.LINE_AA, offset=corner)


def paint_lines(
    canvas: np.ndarray, points: np.ndarray, color: RGB, width: int, *, alpha: float = 1.0, closed: bool = False,
    dashed: bool = False, filled: bool = False,
) -> None:  # fmt: skip
    """Draw the polyline through `points` (N, 2), or fill the polygon, anti-aliased and with sub-pixel position."""
    height, width_limit = canvas.shape[:2]
    low = np.clip(np.floor(points.min(0)) - width - 1, 0, (width_limit, height)).astype(int)
    high = np.clip(np.ceil(points.max(0)) + width + 2, 0, (width_limit, height)).astype(int)
    if (high <= low).any():
        return
    roi = canvas[low[1] : high[1], low[0] : high[0]]
    layer = roi.copy()
    strokes = _dashes(points, closed, 4.0 * width + 2) if dashed else [points]
    fixed = [np.round((stroke - low) * 2**_SUBPIXEL_BITS).astype(np.int32) for stroke in strokes]
    if filled:
        cv2.fillPoly(layer, fixed, to_bytes(color), cv2.LINE_AA, _SUBPIXEL_BITS)
    else:
        cv2.polylines(layer, fixed, closed and not dashed, to_bytes(color), width, cv2.LINE_AA, _SUBPIXEL_BITS)
    roi[:] = cv2.addWeighted(roi, 1 - alpha, layer, alpha, 0)


def _dashes(points: np.ndarray, closed: bool, length: float) -> list[np.ndarray]:
    """Cut a polyline into dashes of about `length` with gaps as long."""
    if closed:
        points = np.concatenate([points, points[:1]])
    dashes = []
    for start, end in itertools.pairwise(points):
        parts = max(1, int(np.linalg.norm(end - start) / length) // 2 * 2 + 1)
        stops = start + (end - start) * np.linspace(0, 1, parts + 1)[:, None]
        dashes += [stops[i : i + 2] for i in range(0, parts, 2)]
    return dashes


@lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


@lru_cache(maxsize=2048)
def text_mask(text: str, pixels: int) -> np.ndarray:
    """(h, w) uint8 opacity of `text` in letters of the given size, all lines of one size equally high."""
    font = _font(pixels)
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
    height = max(math.ceil(bottom), sum(font.getmetrics())) if isinstance(font, ImageFont.FreeTypeFont) else bottom
    image = Image.new("L", (max(1, math.ceil(right)), max(1, math.ceil(height))))
    ImageDraw.Draw(image).text((0, 0), text, fill=255, font=font)
    opacity = np.array(image)
    opacity.flags.writeable = False  # it is shared by the cache
    return opacity


def fitting_text(text: str, pixels: int, canvas: np.ndarray, padding: int) -> np.ndarray | None:
    """`text_mask` in the largest size up to `pixels` that fits the canvas; None where no legible one does."""
    height, width = canvas.shape[0] - 2 * padding, canvas.shape[1] - 2 * padding
    while pixels >= _SMALLEST_FONT:
        opacity = text_mask(text, pixels)
        shrink = min(width / opacity.shape[1], height / opacity.shape[0])
        if shrink >= 1:
            return opacity
        pixels = min(pixels - 1, int(pixels * shrink))
    return None


def paint_label(canvas: np.ndarray, opacity: np.ndarray, corner: tuple[int, int], color: RGB, padding: int) -> Box:
    """Write light text in the tint of `color` on a dark box whose top left pixel is `corner`."""
    x, y = corner
    box = (x, y, x + opacity.shape[1] + 2 * padding, y + opacity.shape[0] + 2 * padding)
    left, top, right, bottom = (
        max(box[0], 0),
        max(box[1], 0),
        min(box[2], canvas.shape[1]),
        min(box[3], canvas.shape[0]),
    )
    if right <= left or bottom <= top:
        return box
    opacity = np.pad(opacity, padding)[top - y : bottom - y, left - x : right - x, None].astype(np.float32) / 255
    roi = canvas[top:bottom, left:right]
    background = roi * np.float32(0.25)
    roi[:] = np.round(background + (np.array(to_bytes(_light(color)), np.float32) - background) * opacity)
    return box


def _light(color: RGB) -> RGB:
    """A tint of `color` light enough to be read on a dark box."""
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return mix(color, (1.0, 1.0, 1.0), max(0.35, (0.82 - luminance) / (1 - luminance + 1e-6)))


def inner_points(mask: np.ndarray) -> np.ndarray:
    """Where a label of a mask may be centred: points of its largest part, the deepest inside first.

    Args:
        mask: (h, w) uint8 0/1 with at least one pixel set.

    Returns:
        (N, 2) x and y of at most 16 points, in pixels of `mask`.
    """
    shrink = min(1.0, _INNER_SIDE / max(mask.shape))
    size = max(1, round(mask.shape[1] * shrink)), max(1, round(mask.shape[0] * shrink))
    small = np.uint8(cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_AREA) > 127)
    if not small.any():  # thin everywhere
        small = np.uint8(cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_AREA) > 0)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(np.pad(small, 1), connectivity=8)
    largest = (parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    depth = cv2.distanceTransform(largest, cv2.DIST_L2, 3)[1:-1, 1:-1].ravel()
    order = np.argsort(-depth, kind="stable")[: np.count_nonzero(depth)]
    order = order[:: max(1, len(order) // _NUM_PLACES)][:_NUM_PLACES]
    rows, columns = np.divmod(order, size[0])
    return np.stack([(columns + 0.5) * mask.shape[1] / size[0], (rows + 0.5) * mask.shape[0] / size[1]], axis=1)


def choose_place(places: np.ndarray, size: tuple[int, int], taken: list[Box], canvas: np.ndarray) -> tuple[int, int]:
    """The first of the places where a label covers no other one, or else where it covers least.

    Args:
        places: (N, 2) x and y of the label's centre, the best first.
        size: (width, height) of the label.
        taken: boxes of the labels that are there already.

    Returns:
        x, y of the label's top left pixel, moved so that the label lies within the canvas.
    """
    corners = np.round(places - np.array(size) / 2)
    corners = np.clip(corners, 0, np.maximum(np.array(canvas.shape[1::-1]) - size, 0)).astype(int)  # (N, 2)
    others = np.array(taken, dtype=int).reshape(-1, 4)
    low = np.maximum(corners[:, None], others[:, :2])
    high = np.minimum(corners[:, None] + np.array(size), others[:, 2:])
    covered = np.clip(high - low, 0, None).prod(-1).sum(-1)  # (N,)
    x, y = corners[covered.argmin()]
    return int(x), int(y)
