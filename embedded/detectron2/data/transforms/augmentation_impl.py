"""The augmentations.

Randomness comes from `np.random`, in a fixed order: runs with equal seeds compare only as long as it is kept.
Images are (H, W) or (H, W, C), sizes (h, w).
"""

import sys
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from .augmentation import AugInput, Augmentation, _as_augmentation
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


# ---- crop, rotate, extend ----


class FixedSizeCrop(Augmentation):
    """Cut out a window of a fixed size at a random place and fill up smaller images at the right and the bottom."""

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        """
        Args:
            crop_size: (h, w).
            pad: whether to fill up.
            pad_value: for the image.
            seg_pad_value: for labels.
        """
        self.crop_size, self.pad = crop_size, pad
        self.pad_value, self.seg_pad_value = pad_value, seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        size, window = np.array(image.shape[:2]), np.array(self.crop_size)
        # One number for both axes: windows lie on the diagonal of the possible places.
        offset = np.round(np.maximum(size - window, 0) * np.random.uniform(0.0, 1.0)).astype(int)
        (height, width), (crop_h, crop_w), (y0, x0) = size.tolist(), window.tolist(), offset.tolist()
        steps: list[Transform] = [CropTransform(x0, y0, crop_w, crop_h, width, height)]
        if self.pad:
            kept_h, kept_w = np.minimum(size, window).tolist()
            steps.append(
                PadTransform(0, 0, crop_w - kept_w, crop_h - kept_h, kept_w, kept_h, self.pad_value, self.seg_pad_value)
            )
        return TransformList(steps)


class RandomCrop(Augmentation):
    """Cut out a window at a random place."""

    _TYPES = ("relative_range", "relative", "absolute", "absolute_range")

    def __init__(self, crop_type: str, crop_size: tuple[float, float]) -> None:
        """
        Args:
            crop_type: how the window's size is found, for each axis:
                "relative": a share of the image;
                "relative_range": a share drawn between the given one and 1;
                "absolute": pixels, at most the image;
                "absolute_range": pixels drawn from [first, second], at most the image.
            crop_size: (h, w), or for "absolute_range" the two ends for both axes.

        Raises:
            AssertionError: for another type, or a range that is upside down.
        """
        assert crop_type in self._TYPES, f"crop_type is one of {self._TYPES}, got {crop_type!r}."
        if crop_type == "absolute_range":
            assert crop_size[0] <= crop_size[1], f"The first number of the range is the smaller, got {crop_size}."
        self.crop_type, self.crop_size = crop_type, crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        return CropTransform(*self._draw_window(image.shape[:2]))

    def _draw_window(self, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """x0, y0, w, h."""
        height, width = image_size
        crop_h, crop_w = self.get_crop_size(image_size)
        y0 = np.random.randint(height - crop_h + 1)
        x0 = np.random.randint(width - crop_w + 1)
        return x0, y0, crop_w, crop_h

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw (h, w) of the window."""
        first, second = self.crop_size
        if self.crop_type == "absolute_range":
            crop_h, crop_w = (
                np.random.randint(int(min(side, first)), int(min(side, second)) + 1) for side in image_size
            )
        elif self.crop_type == "absolute":
            crop_h, crop_w = (int(min(side, wanted)) for side, wanted in zip(image_size, self.crop_size))
        else:
            shares = np.array([first, second])
            if self.crop_type == "relative_range":
                shares = shares + np.random.rand(2) * (1 - shares)
            crop_h, crop_w = (int(side * share + 0.5) for side, share in zip(image_size, shares))
        return int(crop_h), int(crop_w)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """A `RandomCrop` in which no category should fill too much of the window."""

    _TRIES = 10

    def __init__(
        self,
        crop_type: str,
        crop_size: tuple[float, float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        """
        Args:
            crop_type, crop_size: of `RandomCrop`.
            single_category_max_area: the share of labelled pixels that one category has to stay below; 1 for no limit.
            ignored_category: label that does not count as a category.
        """
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type, self.crop_size = crop_type, crop_size
        self.single_category_max_area, self.ignored_category = single_category_max_area, ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        if sem_seg is None:
            raise ValueError(
                "RandomCrop_CategoryAreaConstraint chooses windows by their labels: the AugInput needs `sem_seg`."
            )
        for _ in range(self._TRIES):
            x0, y0, w, h = self.crop_aug._draw_window(image.shape[:2])
            if self._is_mixed(sem_seg[y0 : y0 + h, x0 : x0 + w]):
                break
        return CropTransform(x0, y0, w, h)

    def _is_mixed(self, labels: np.ndarray) -> bool:
        names, counts = np.unique(labels, return_counts=True)
        if self.ignored_category is not None:
            counts = counts[names != self.ignored_category]
        return len(counts) > 1 and counts.max() < self.single_category_max_area * counts.sum()


class MinIoURandomCrop(Augmentation):
    """Cut out a window that overlaps every box by a drawn minimum, as in SSD (Liu et al., 2016)."""

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        """
        Args:
            min_ious: overlaps to choose from; no crop and no condition are further choices.
            min_crop_size: the least share of a side.
            mode_trials, crop_trials: how often to choose a condition, and to try a window for each.
        """
        self.min_ious, self.min_crop_size = min_ious, min_crop_size
        self.mode_trials, self.crop_trials = mode_trials, crop_trials

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        """`boxes` are (N, 4) XYXY_ABS."""
        if boxes is None:
            raise ValueError("MinIoURandomCrop chooses windows by boxes: the AugInput needs `boxes`.")
        size = np.array(image.shape[:2])
        choices = (1, *self.min_ious, 0)
        for _ in range(self.mode_trials):
            min_iou = np.random.choice(choices)
            if min_iou == 1:
                return NoOpTransform()
            for _ in range(self.crop_trials):
                crop = np.random.uniform(self.min_crop_size * size, size)
                if not 0.5 <= crop[0] / crop[1] <= 2:
                    continue
                y0, x0 = np.random.uniform(0, size - crop).astype(int)
                h, w = crop.astype(int)
                if h > 0 and w > 0 and _window_fits((x0, y0, x0 + w, y0 + h), boxes, min_iou):
                    return CropTransform(int(x0), int(y0), int(w), int(h))
        return NoOpTransform()


def _window_fits(window: tuple[int, int, int, int], boxes: np.ndarray, min_iou: float) -> bool:
    """Whether a window overlaps all boxes enough and holds the centre of one."""
    if len(boxes) == 0:
        return True
    corners, window_box = np.asarray(boxes, dtype=np.float64), np.array(window, dtype=np.float64)
    sides = np.minimum(corners[:, 2:], window_box[2:]) - np.maximum(corners[:, :2], window_box[:2])
    shared = sides.clip(min=0).prod(axis=1)
    areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    union = areas + (window_box[2:] - window_box[:2]).prod() - shared
    centers = (corners[:, :2] + corners[:, 2:]) / 2
    has_center = ((centers > window_box[:2]) & (centers < window_box[2:])).all(axis=1).any()
    return bool((shared / union).min() >= min_iou and has_center)


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
