"""Random brightness, contrast, saturation and hue, as SSD trains with (Liu et al. 2016)."""

import random

import cv2
import numpy as np
from fvcore.transforms.transform import Transform


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


class ColorAugSSDTransform(Transform):
    """Change the colours of an image at random; coordinates and label maps stay as they are.

    It draws from Python's `random` each time an image comes, in a fixed order: equal seeds give equal images.
    """

    def __init__(
        self,
        img_format: str,
        brightness_delta: int = 32,
        contrast_low: float = 0.5,
        contrast_high: float = 1.5,
        saturation_low: float = 0.5,
        saturation_high: float = 1.5,
        hue_delta: int = 18,
    ) -> None:
        """`img_format` is "BGR" or "RGB", the order of the channels of the images to come."""
        super().__init__()
        if img_format not in ("BGR", "RGB"):
            raise ValueError(f"img_format is {img_format!r}, expected 'BGR' or 'RGB'")
        self.is_rgb = img_format == "RGB"
        self.brightness = (-brightness_delta, brightness_delta)
        self.contrast = (contrast_low, contrast_high)
        self.saturation = (saturation_low, saturation_high)
        self.hue_delta = hue_delta

    def apply_image(self, img: np.ndarray, interp: str | None = None) -> np.ndarray:
        """(H, W, 3) uint8 in, the same out."""
        bgr = np.ascontiguousarray(img[..., ::-1]) if self.is_rgb else img
        bgr = self._shift_brightness(bgr)
        steps = [self._scale_saturation, self._shift_hue]
        if random.randrange(2):
            steps.insert(0, self._scale_contrast)
        else:
            steps.append(self._scale_contrast)
        for step in steps:
            bgr = step(bgr)
        return np.ascontiguousarray(bgr[..., ::-1]) if self.is_rgb else bgr

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        """Nothing moved, so there is nothing to move back; the colours cannot be restored."""
        return self

    # Each of these does something half of the time.

    def _shift_brightness(self, bgr: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return bgr
        return _to_uint8(bgr.astype(np.float32) + random.uniform(*self.brightness))

    def _scale_contrast(self, bgr: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return bgr
        return _to_uint8(bgr.astype(np.float32) * random.uniform(*self.contrast))

    def _scale_saturation(self, bgr: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return bgr
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = _to_uint8(hsv[..., 1].astype(np.float32) * random.uniform(*self.saturation))
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    def _shift_hue(self, bgr: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return bgr
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        # OpenCV's 8 bit hue counts half degrees.
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + random.randint(-self.hue_delta, self.hue_delta)) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
