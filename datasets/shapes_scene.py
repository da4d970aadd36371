"""Scenes of the data set "shapes": what prepare_shapes.py draws.

A scene is a picture and a map of which segment each pixel belongs to. Each class has a family of outlines and a texture
with palettes of its own, all varied by the random generator given.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import shapely

from mask2former.data.datasets.register_shapes import SHAPES_CATEGORIES

Array = np.ndarray
Polygon = list[float]  # x1 y1 x2 y2 ...
Texture = Callable[[np.random.Generator, Array, Array], Array]

THINGS = [row for row in SHAPES_CATEGORIES if row["isthing"]]
STUFF = [row for row in SHAPES_CATEGORIES if not row["isthing"]]

MIN_SIDE, MAX_SIDE = 8, 100  # of a thing, in pixels of an image of size 128
MIN_VISIBLE_SHARE, MIN_VISIBLE_PIXELS = 0.4, 24


@dataclass
class Segment:
    """One segment of an image, before it is known what will cover it."""

    category: dict[str, Any]
    area: int  # when it was drawn
    polygon: Polygon | None = None  # its outline, where one says it all
    is_crowd: bool = False


@dataclass
class Scene:
    """A picture in the making: colours, and which segment each pixel belongs to (position + 1; 0 is nothing)."""

    rgb: Array  # (H, W, 3) float, 0 to 1
    owner: Array  # (H, W) int
    segments: list[Segment] = field(default_factory=list)

    def add(self, segment: Segment, mask: Array) -> None:
        self.segments.append(segment)
        self.owner[mask] = len(self.segments)


# ---- colours and noise


def hsv(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, np.clip(saturation, 0, 1), np.clip(value, 0, 1)))


def pick_color(rng: np.random.Generator, *choices: tuple[float, float, float]) -> Array:
    """One of some (hue, saturation, value), and a little beside it."""
    hue, saturation, value = choices[rng.integers(len(choices))]
    return hsv(hue + rng.normal(0, 0.015), saturation + rng.normal(0, 0.06), value + rng.normal(0, 0.06))


def mix(share: Array, first: Array, second: Array) -> Array:
    """(...,) share of the second colour to (..., 3) colours."""
    return first + (second - first) * share[..., None]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Array:
    """(H, W) in about -1 to 1 that changes over 1/cells of the image."""
    grid = rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)


# ---- things: outlines (in a frame where the longer side is 1) and textures (of the same frame's u, v)


def polar(radii: Array, start: float = 0.0) -> Array:
    """(N, 2) points at these distances from 0, at equal angles."""
    angles = start + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def outline(rng: np.random.Generator, name: str) -> tuple[Array, Array | None]:
    """(N, 2) points around a thing of this class, and those around its hole."""
    if name == "ball":
        return polar(np.full(40, 0.5)) * [1, rng.uniform(0.86, 1)], None
    if name == "crate":
        corner = np.array([0.5, 0.5 * rng.uniform(0.6, 1)])
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * corner, None
    if name == "star":
        spikes = rng.integers(5, 8)
        return polar(np.tile([0.5, rng.uniform(0.2, 0.27)], spikes)), None
    if name == "leaf":
        along = np.linspace(-0.5, 0.5, 16)
        width = rng.uniform(0.18, 0.28) * np.cos(along * np.pi) ** rng.uniform(0.8, 1.3)
        upper = np.stack([along, width], axis=1)
        return np.concatenate([upper, (upper * [1, -1])[-2:0:-1]]), None
    if name == "ring":
        rim = polar(np.full(40, 0.5)) * [1, rng.uniform(0.85, 1)]
        return rim, rim * rng.uniform(0.45, 0.62)
    if name == "kite":
        side, front = rng.uniform(0.28, 0.42), rng.uniform(-0.3, 0.0)
        return np.array([[-0.5, 0], [front, side], [0.5, 0], [front, -side]]), None
    if name == "fish":
        turn = np.linspace(0.25, 2 * np.pi - 0.25, 24)
        body = np.stack([-0.15 * np.ones(24) - 0.35 * -np.cos(turn), rng.uniform(0.2, 0.27) * np.sin(turn)], axis=1)
        tail = rng.uniform(0.18, 0.28)
        return np.concatenate([body, [[0.5, -tail], [0.42, 0], [0.5, tail]]]), None
    assert name == "cross", name
    arm = rng.uniform(0.12, 0.19)
    quarter = np.array([[0.5, -arm], [0.5, arm], [arm, arm]])
    turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate([quarter @ turn for turn in turns]), None


def ball_texture(rng: np.random.Generator, u: Array, v: Array) -> Array:
    base = pick_color(rng, (0.0, 0.85, 0.9), (0.97, 0.75, 0.75))
    shade = 1.15 - 1.6 * ((u + 0.12) ** 2 + (v + 0.12) ** 2)
    color = base * shade[..., None]
    if rng.random() < 0.6:
        color = mix((np.abs(v) < 0.09).astype(float), color, np.full(3, 0.95) * shade.clip(0.6, 1).mean())
    return mix(np.exp(-60 * ((u + 0.17) ** 2 + (v + 0.17) ** 2)), color, np.ones(3))


def crate_texture(rng: np.random.Generator, u: Array, v: Array) -> Array:
    base = pick_color(rng, (0.08, 0.6, 0.6), (0.07, 0.5, 0.45), (0.1, 0.5, 0.75))
    planks = np.sin(v * np.pi * 2 * rng.uniform(2.5, 4.5)) > 0.75
    frame = np.maximum(np.abs(u) / 0.5, np.abs(v) / max(np.abs(v).max(), 0.1)) > 0.78
    diagonal = np.abs(u - v) < 0.07
    color = mix(planks.astype(float), base, base * 0.5)
    return mix((frame | diagonal).astype(float), color, np.minimum(base * 1.35, 1))


def star_texture(rng: np.random.Generator, u: Array, v: Array) -> Array:
    rim = pick_color(rng, (0.13, 0.95, 0.95), (0.16, 0.9, 0.9))
    return mix(np.exp(-18 * (u**2 + v**2)), rim, hsv(0.15, rng.uniform(0.1, 0.4), 1))


def leaf_texture(rng: np.random.Generator, u: Array, v: Array) -> Array:
    base = pick_color(rng, (0.28, 0.75, 0.8), (0.24, 0.8, 0.75))
    veins = (np.sin((u - 0.8 * np.abs(v)) * 2 * np.pi * rng.uniform(5, 8)) > 0.7) | (np.abs(v) < 0.03)
    return mix(0.55 * veins, base, np.array([0.95, 0.95, 0.6]))


def ring_texture(rng: np.random.Generator, u: Array, v: Array) -> Array:
    base = pick_color(rng, (0.86, 0.75, 0.85), (0.91, 0.6, 0.95))
    angle = np.arctan2(v, u)
    if rng.random() < 0.5:
        return mix((np.sin(angle * rng.integers(3, 7)) > 0.2).astype(float), base, base * 0.45 + 0.5)
    return base * (0.85 + 0.3 * np.sin(angle + rng.uniform(0, 6)))[..., None]


def kite_texture(rng: np.random.Generator, u: Array, v: Array) -> Array:
    first = pick_color(rng, (0.74, 0.75, 0.75), (0.78, 0.7, 0.85))
    checks = (u > rng.uniform(-0.3, 0)) ^ (v > 0)
    return mix(checks.astype(float), first, hsv(rng.uniform(0, 1), 0.08, 0.97))


def fish_texture(rng: np.random.Generator, u: Array, v: Array) -> Array:
    base = pick_color(rng, (0.06, 0.9, 0.95), (0.04, 0.85, 0.85))
    bands = np.sin((u + rng.uniform(0, 1)) * 2 * np.pi * rng.uniform(3, 4.5)) > 0.45
    color = mix(bands.astype(float), base, base * 0.3 + (0.7 if rng.random() < 0.6 else 0.0))
    color = color * (1.05 - 1.2 * np.abs(v))[..., None]
    eye = np.hypot(u + 0.36, v + 0.05)
    return mix((eye < 0.035).astype(float), mix((eye < 0.07).astype(float), color, np.ones(3)), np.zeros(3))


def cross_texture(rng: np.random.Generator, u: Array, v: Array) -> Array:
    base = hsv(rng.uniform(0, 1), rng.uniform(0, 0.12), rng.uniform(0.8, 1))
    dot = pick_color(rng, (0.0, 0.9, 0.8), (0.0, 0.0, 0.1), (0.4, 0.9, 0.5))
    dots = np.hypot((u * 6 + 0.5) % 1 - 0.5, (v * 6 + 0.5) % 1 - 0.5) < 0.3
    return mix(dots.astype(float), base, dot)


THING_TEXTURES: dict[str, Texture] = {
    "ball": ball_texture,
    "crate": crate_texture,
    "star": star_texture,
    "leaf": leaf_texture,
    "ring": ring_texture,
    "kite": kite_texture,
    "fish": fish_texture,
    "cross": cross_texture,
}


# ---- stuff: textures of pixel coordinates x, y


def sky_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    base = pick_color(rng, (0.56, 0.45, 0.92), (0.6, 0.5, 0.85), (0.53, 0.3, 0.95))
    clouds = smooth_noise(rng, x.shape, 4) + 0.5 * smooth_noise(rng, x.shape, 9)
    color = base * (0.85 + 0.2 * y / y.max())[..., None]
    return mix((clouds * rng.uniform(0.8, 1.6)).clip(0, 0.9), color, np.ones(3))


def grass_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    base = pick_color(rng, (0.3, 0.6, 0.42), (0.27, 0.55, 0.5), (0.35, 0.5, 0.35))
    blades = cv2.GaussianBlur(rng.normal(0, 1, x.shape).astype(np.float32), (0, 0), sigmaX=0.5, sigmaY=2.0)
    return base * (1 + 0.55 * blades + 0.15 * smooth_noise(rng, x.shape, 5))[..., None]


def sand_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    base = pick_color(rng, (0.11, 0.35, 0.85), (0.1, 0.42, 0.78), (0.12, 0.25, 0.8))
    bent = y + 6 * smooth_noise(rng, x.shape, 3)
    dunes = np.sin(bent * 2 * np.pi / rng.uniform(22, 40))
    return base * (1 + 0.06 * dunes + 0.05 * rng.normal(0, 1, x.shape))[..., None]


def water_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    base = pick_color(rng, (0.6, 0.8, 0.5), (0.57, 0.75, 0.45), (0.63, 0.7, 0.42))
    bent = y + 4 * smooth_noise(rng, x.shape, 6)
    waves = np.sin(bent * 2 * np.pi / rng.uniform(6, 11) + 0.05 * x)
    return mix(0.35 * waves.clip(0, 1) ** 2, base, np.array([0.7, 0.9, 1.0])) + 0.04 * waves[..., None]


def brick_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    base = pick_color(rng, (0.02, 0.6, 0.55), (0.04, 0.5, 0.5), (0.98, 0.5, 0.45))
    height = rng.uniform(7, 11)
    row = np.floor(y / height)
    column = x / (height * 2.2) + 0.5 * (row % 2)
    mortar = ((y / height) % 1 < 0.18) | (column % 1 < 0.09)
    shades = rng.uniform(0.75, 1.2, 997)[(row * 31 + np.floor(column) * 17).astype(int) % 997]
    return mix(mortar.astype(float), base * shades[..., None], np.full(3, rng.uniform(0.55, 0.75)))


STUFF_TEXTURES: dict[str, Texture] = {
    "sky": sky_texture,
    "grass": grass_texture,
    "sand": sand_texture,
    "water": water_texture,
    "brick": brick_texture,
}


# ---- a scene


def make_scene(rng: np.random.Generator, size: int) -> Scene:
    """Stuff, perhaps void, perhaps a crowd, then things one over the other; or no things at all."""
    aspect = np.exp(rng.uniform(-0.28, 0.28))
    height, width = round(size * np.sqrt(aspect)), round(size / np.sqrt(aspect))
    scene = Scene(np.zeros((height, width, 3)), np.zeros((height, width), np.int64))
    draw_stuff(rng, scene)
    if rng.random() < 0.12:
        draw_void_patch(rng, scene)
    if rng.random() < 0.05:
        return scene
    if rng.random() < 0.08:
        draw_crowd(rng, scene, size / 128)
    for _ in range(rng.integers(1, 6)):
        draw_thing(rng, scene, size / 128)
    return scene


def draw_stuff(rng: np.random.Generator, scene: Scene) -> None:
    """Divide the image among one to four classes: each pixel to the nearest seed, seen through bent glass."""
    shape = scene.owner.shape
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    classes = rng.permutation(len(STUFF))[: rng.integers(1, 5)]
    bend = 0.12 * max(shape)
    bent = np.stack([x + bend * smooth_noise(rng, shape, 3), y + bend * smooth_noise(rng, shape, 3)], axis=-1)
    seeds = rng.uniform(0, 1, (len(classes), 2)) * shape[::-1]
    nearest = np.linalg.norm(bent[:, :, None] - seeds, axis=-1).argmin(-1)
    for position, index in enumerate(classes):
        mask = nearest == position
        if mask.sum() < 0.02 * mask.size:
            continue  # too little to be told apart; what is not covered later stays void
        scene.rgb[mask] = STUFF_TEXTURES[STUFF[index]["name"]](rng, x, y)[mask]
        scene.add(Segment(STUFF[index], int(mask.sum())), mask)
    if rng.random() < 0.3:  # nobody labels borders to the pixel
        is_border = cv2.morphologyEx(nearest.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        scene.owner[is_border] = 0


def draw_void_patch(rng: np.random.Generator, scene: Scene) -> None:
    """Grey rubble that belongs to no class."""
    height, width = scene.owner.shape
    points = polar(rng.uniform(0.06, 0.16, 9) * max(height, width)) + rng.uniform(0.1, 0.9, 2) * (width, height)
    mask = rasterise(flatten(points), height, width)
    scene.rgb[mask] = rng.uniform(0.2, 0.8, (int(mask.sum()), 1))
    scene.owner[mask] = 0


def draw_thing(rng: np.random.Generator, scene: Scene, scale: float) -> None:
    """Put a thing somewhere where it does not hide too much of another one; give up after some places."""
    category = THINGS[rng.integers(len(THINGS))]
    height, width = scene.owner.shape
    side = min(scale * MIN_SIDE * (MAX_SIDE / MIN_SIDE) ** rng.beta(5.0, 1.3), 0.85 * min(height, width))
    shape = outline(rng, category["name"])
    for _ in range(8):
        center = rng.uniform(0.04, 0.96, 2) * (width, height)
        angle = rng.uniform(0, 2 * np.pi)
        mask, polygon = place(shape, center, side, angle, height, width)
        if mask.sum() >= MIN_VISIBLE_PIXELS and not hides_too_much(scene, mask):
            paint(rng, scene, category, mask, center, side, angle)
            scene.add(Segment(category, int(mask.sum()), polygon), mask)
            return


def draw_crowd(rng: np.random.Generator, scene: Scene, scale: float) -> None:
    """A heap of small things of one class that nobody would outline one by one."""
    category = THINGS[rng.integers(len(THINGS))]
    height, width = scene.owner.shape
    middle = rng.uniform(0.25, 0.75, 2) * (width, height)
    heap = np.zeros((height, width), bool)
    for _ in range(rng.integers(12, 22)):
        center, side = middle + rng.normal(0, 11 * scale, 2), rng.uniform(10, 16) * scale
        angle = rng.uniform(0, 2 * np.pi)
        mask, _ = place(outline(rng, category["name"]), center, side, angle, height, width)
        paint(rng, scene, category, mask, center, side, angle)
        heap |= mask
    scene.add(Segment(category, int(heap.sum()), is_crowd=True), heap)


def place(
    shape: tuple[Array, Array | None], center: Array, side: float, angle: float, height: int, width: int
) -> tuple[Array, Polygon | None]:
    """Scale, turn and shift an outline; returns its (H, W) mask, and its polygon if that is all there is to it."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    rim, hole = (None if points is None else points * side @ turn + center for points in shape)
    # What is beyond the border is cut off, as it is in files that people make.
    inside = shapely.Polygon(rim).intersection(shapely.box(0, 0, width, height))
    if not isinstance(inside, shapely.Polygon) or inside.is_empty:
        return np.zeros((height, width), bool), None
    polygon = flatten(np.array(inside.exterior.coords)[:-1])
    mask = rasterise(polygon, height, width)
    return (mask, polygon) if hole is None else (mask & ~rasterise(flatten(hole), height, width), None)


def flatten(points: Array) -> Polygon:
    return points.round(2).ravel().tolist()


def rasterise(polygon: Polygon, height: int, width: int) -> Array:
    """The (H, W) pixels that COCO's tools count as inside, so that the json gives back the same ones."""
    return mask_util.decode(mask_util.frPyObjects([polygon], height, width))[..., 0].astype(bool)


def hides_too_much(scene: Scene, mask: Array) -> bool:
    """Whether drawing here leaves too little of a segment that is there already."""
    left = np.bincount(scene.owner[~mask], minlength=len(scene.segments) + 1)[1:]
    return any(
        visible < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * segment.area if segment.category["isthing"] else 0)
        for segment, visible in zip(scene.segments, left)
    )


def paint(
    rng: np.random.Generator,
    scene: Scene,
    category: dict[str, Any],
    mask: Array,
    center: Array,
    side: float,
    angle: float,
) -> None:
    """Colour the pixels of a thing with the texture of its class, turned as the thing is."""
    y, x = np.nonzero(mask)
    if len(y) == 0:
        return
    dx, dy = (x + 0.5 - center[0]) / side, (y + 0.5 - center[1]) / side
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    scene.rgb[y, x] = THING_TEXTURES[category["name"]](rng, u, v) * rng.uniform(0.85, 1.1)


def develop(rng: np.random.Generator, rgb: Array) -> Array:
    """Light, lens and sensor: (H, W, 3) uint8."""
    light = rng.uniform(0.8, 1.1) * rng.uniform(0.94, 1.06, 3)
    light = light * (1 + rng.uniform(0, 0.15) * smooth_noise(rng, rgb.shape[:2], 2))[..., None]
    blurred = cv2.GaussianBlur(rgb * light, (0, 0), rng.uniform(0.35, 0.75))
    return ((blurred + rng.normal(0, rng.uniform(0.01, 0.045), rgb.shape)).clip(0, 1) * 255).astype(np.uint8)
