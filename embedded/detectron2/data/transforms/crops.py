"""The augmentations that cut out a window inside the image; see `augmentation_impl` for what all of them share."""

from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import CropTransform, NoOpTransform, PadTransform, Transform, TransformList

from .augmentation import Augmentation


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
