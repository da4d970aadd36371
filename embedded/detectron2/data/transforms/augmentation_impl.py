"""The augmentations; those that crop are in `crops`.

Randomness comes from `np.random`, in a fixed order: runs with equal seeds compare only as long as it is kept.
Images are (H, W) or (H, W, C), sizes (h, w).
"""

import sys
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    VFlipTransform,
)
from PIL import Image

from .augmentation import AugInput, Augmentation, _as_augmentation
from .crops import (  # noqa: F401  imported from here by other scripts
    FixedSizeCrop,
    MinIoURandomCrop,
    RandomCrop,
    RandomCrop_CategoryAreaConstraint,
)
from .transform import ExtentTransform, ResizeTransform, RotationTransform

# ---- flip and resize ----


class RandomFlip(Augmentation):
    """Flip along one axis with a probability."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        """
        Raises:
            ValueError: unless exactly one direction is chosen.
        """
        if horizontal == vertical:
            raise ValueError(
                f"RandomFlip flips along one axis, got horizontal={horizontal}, vertical={vertical}. "
                "Use two RandomFlip for both."
            )
        self.prob, self.horizontal, self.vertical = prob, horizontal, vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class RandomApply(Augmentation):
    """Another augmentation or transform, with a probability."""

    def __init__(self, aug: Augmentation | Transform, prob: float = 0.5) -> None:
        assert 0.0 <= prob <= 1.0, f"Probability must be between 0 and 1, got {prob}."
        self.aug, self.prob = _as_augmentation(aug), prob

    def __call__(self, aug_input: AugInput) -> Transform:
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class Resize(Augmentation):
    """Resize to a fixed size."""

    def __init__(self, shape: int | tuple[int, int], interp: int = Image.BILINEAR) -> None:
        """`shape` is (h, w), or the side of a square."""
        self.shape = (shape, shape) if isinstance(shape, int) else (shape[0], shape[1])
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(image.shape[0], image.shape[1], *self.shape, self.interp)


class RandomResize(Augmentation):
    """Resize to one of several sizes."""

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = Image.BILINEAR) -> None:
        """`shape_list` holds (h, w)."""
        self.shape_list, self.interp = shape_list, interp

    def get_transform(self, image: np.ndarray) -> Transform:
        chosen = self.shape_list[np.random.choice(len(self.shape_list))]
        return ResizeTransform(image.shape[0], image.shape[1], *chosen, self.interp)


class ResizeShortestEdge(Augmentation):
    """Resize the shorter side to a drawn length, keeping the aspect ratio and a limit for the longer side."""

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ) -> None:
        """
        Args:
            short_edge_length: with "range" the two ends (included), with "choice" the lengths to choose from.
            max_size: limit for the longer side.
            sample_style: "range" or "choice".
            interp: one of Pillow's.

        Raises:
            AssertionError: for another style, or a range without two ends.
        """
        assert sample_style in ("range", "choice"), f"sample_style is 'range' or 'choice', got {sample_style!r}."
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        self.is_range = sample_style == "range"
        if self.is_range:
            assert len(short_edge_length) == 2, (
                f"sample_style 'range' needs the two ends of a range, got {short_edge_length}. "
                "Use 'choice' for a list of lengths."
            )
        self.short_edge_length, self.max_size = short_edge_length, max_size
        self.sample_style, self.interp = sample_style, interp

    def get_transform(self, image: np.ndarray) -> Transform:
        if self.is_range:
            shortest, longest = self.short_edge_length
            length = np.random.randint(shortest, longest + 1)
        else:
            length = np.random.choice(self.short_edge_length)
        if length == 0:
            return NoOpTransform()
        height, width = image.shape[:2]
        new_size = self.get_output_shape(height, width, int(length), self.max_size)
        return ResizeTransform(height, width, *new_size, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """The (h, w) to resize to; no side falls below one pixel."""
        short = float(short_edge_length)
        scale = short / min(oldh, oldw)
        new = [scale * oldh, short] if oldw <= oldh else [short, scale * oldw]
        if max(new) > max_size:
            shrink = max_size / max(new)
            new = [side * shrink for side in new]
        new_h, new_w = (max(int(side + 0.5), 1) for side in new)
        return new_h, new_w


class ResizeScale(Augmentation):
    """Large-scale jitter: fit the image into a target size times a random factor."""

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.BILINEAR,
    ) -> None:
        self.min_scale, self.max_scale = min_scale, max_scale
        self.target_height, self.target_width = target_height, target_width
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        factor = np.random.uniform(self.min_scale, self.max_scale)
        scale = min(self.target_height * factor / height, self.target_width * factor / width)
        new_h, new_w = (max(int(np.round(side * scale)), 1) for side in (height, width))
        return ResizeTransform(height, width, new_h, new_w, self.interp)


# ---- rotate, extend ----


class RandomRotation(Augmentation):
    """Rotate by a drawn angle, about a drawn point."""

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        """
        Args:
            angle: degrees counter-clockwise; with "range" the two ends, with "choice" the angles to choose from.
            expand: grow the image so that nothing is cut off.
            center: a point, or with "range" two corners and with "choice" points, as shares x, y of the image.
            sample_style: "range" or "choice".
            interp: one of OpenCV's.
        """
        assert sample_style in ("range", "choice"), f"sample_style is 'range' or 'choice', got {sample_style!r}."
        self.is_range = sample_style == "range"
        self.angle = (angle, angle) if isinstance(angle, (int, float)) else angle
        if center is not None and isinstance(center[0], (int, float)):
            center = (center, center)
        self.center = center
        self.expand, self.sample_style, self.interp = expand, sample_style, interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        share = None
        if self.is_range:
            angle = np.random.uniform(self.angle[0], self.angle[1])
            if self.center is not None:
                (min_x, min_y), (max_x, max_y) = self.center
                share = (np.random.uniform(min_x, max_x), np.random.uniform(min_y, max_y))
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                share = self.center[np.random.choice(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        center = None if share is None else (share[0] * width, share[1] * height)
        return RotationTransform(height, width, float(angle), self.expand, center, self.interp)


class RandomExtent(Augmentation):
    """Cut out a window of random size and place, which may reach beyond the image."""

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        """
        Args:
            scale_range: the window's size as a share of the image.
            shift_range: x, y; the window's centre is off the middle by at most half this share of the image.
        """
        self.scale_range, self.shift_range = scale_range, shift_range

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        side = np.array([width, height]) * np.random.uniform(*self.scale_range)
        shift = np.array([share * (np.random.rand() - 0.5) for share in self.shift_range])
        middle = np.array([width, height]) * (0.5 + shift)
        x0, y0, x1, y1 = (*(middle - side / 2), *(middle + side / 2))
        return ExtentTransform((x0, y0, x1, y1), (int(y1 - y0), int(x1 - x0)))


# ---- colour ----


class _RandomBlend(Augmentation):
    """Mix the image with a plainer one: below 1 the weight weakens an effect, above 1 it strengthens it."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        """The ends of the range from which the weight of the image is drawn."""
        self.intensity_min, self.intensity_max = intensity_min, intensity_max

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=self._plainer(image), src_weight=1 - weight, dst_weight=weight)

    def _plainer(self, image: np.ndarray) -> np.ndarray | float:
        raise NotImplementedError


class RandomBrightness(_RandomBlend):
    """Mix with black."""

    def _plainer(self, image: np.ndarray) -> float:
        return 0


class RandomContrast(_RandomBlend):
    """Mix with the mean of the image."""

    def _plainer(self, image: np.ndarray) -> float:
        return image.mean()


class RandomSaturation(_RandomBlend):
    """Mix with the greyscale image; for RGB."""

    def _plainer(self, image: np.ndarray) -> np.ndarray:
        assert image.ndim == 3 and image.shape[2] == 3, f"RandomSaturation needs RGB, got shape {image.shape}."
        return (image @ np.array([0.299, 0.587, 0.114]))[..., None]


class RandomLighting(Augmentation):
    """Add a random colour along the principal axes of ImageNet's colours (Krizhevsky et al., 2012); for RGB."""

    _AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    _VARIANCES = np.array([0.2175, 0.0188, 0.0045])

    def __init__(self, scale: float) -> None:
        """`scale` is the standard deviation of the weights."""
        self.scale = scale

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.ndim == 3 and image.shape[2] == 3, f"RandomLighting needs RGB, got shape {image.shape}."
        weights = np.random.normal(scale=self.scale, size=3)
        return BlendTransform(src_image=self._AXES @ (weights * self._VARIANCES), src_weight=1.0, dst_weight=1.0)
