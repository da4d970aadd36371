"""Transforms beyond those of fvcore: resize, rotate, cut out a window, change colours."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

_TORCH_MODES = {
    int(Image.NEAREST): "nearest",
    int(Image.BILINEAR): "bilinear",
    int(Image.BICUBIC): "bicubic",
}


class ResizeTransform(Transform):
    """Resize from (h, w) to (new_h, new_w).

    Published numbers depend on two ways to resize. uint8 arrays go through Pillow, which samples at pixel centres and
    smooths when it shrinks; all others through torch, whose nearest neighbour is pixel floor(i * old / new). Labels
    0..9 shrunk to four pixels are 1 3 6 8 as uint8 and 0 2 5 7 as float64.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        """`interp` is one of Pillow's NEAREST, BILINEAR (if None) and BICUBIC; uint8 takes any of Pillow's."""
        super().__init__()
        self.h, self.w = h, w
        self.new_h, self.new_w = new_h, new_w
        self.interp = Image.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (H, W) or (H, W, C).

        Raises:
            AssertionError: if the image is not (h, w).
            NotImplementedError: for integers other than uint8, unless `interp` is NEAREST.
        """
        assert img.shape[:2] == (self.h, self.w), (
            f"ResizeTransform made for (h, w) = {(self.h, self.w)} got an image of shape {img.shape}."
        )
        interp = self.interp if interp is None else interp
        resize = self._resize_pillow if img.dtype == np.uint8 else self._resize_torch
        return resize(img, interp)

    def _resize_pillow(self, img: np.ndarray, interp: int) -> np.ndarray:
        size = (self.new_w, self.new_h)
        if img.ndim == 2 or img.shape[2] == 3:
            return np.asarray(Image.fromarray(img).resize(size, interp))
        # One by one: Pillow would take four channels for colour with transparency, and has no image of five.
        planes = [np.asarray(Image.fromarray(img[..., c]).resize(size, interp)) for c in range(img.shape[2])]
        return np.stack(planes, axis=-1)

    def _resize_torch(self, img: np.ndarray, interp: int) -> np.ndarray:
        mode = _TORCH_MODES.get(int(interp))
        if mode is None:
            raise NotImplementedError(f"An array of {img.dtype} cannot be resized with Pillow's filter {interp}.")
        values = img
        if img.dtype.kind != "f":
            if mode != "nearest":
                raise NotImplementedError(
                    f"An image of {img.dtype} cannot be resized with interpolation. Convert it to uint8 or float32."
                )
            values = img.astype(np.float64)
        planes = values[..., None] if img.ndim == 2 else values  # (H, W, C)
        tensor = torch.from_numpy(np.ascontiguousarray(planes)).permute(2, 0, 1)[None]  # (1, C, H, W)
        align_corners = None if mode == "nearest" else False
        resized = F.interpolate(tensor, (int(self.new_h), int(self.new_w)), mode=mode, align_corners=align_corners)[0]
        planes = resized.permute(1, 2, 0).numpy()
        return (planes[..., 0] if img.ndim == 2 else planes).astype(img.dtype, copy=False)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize labels, (H, W) or (H, W, C), with nearest neighbours."""
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale (N, 2) points x, y, in place."""
        coords[:, 0] *= self.new_w / self.w
        coords[:, 1] *= self.new_h / self.h
        return coords

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class _AffineTransform(Transform):
    """Move points by a (2, 3) matrix, and pixels along with them, onto an image of (out_h, out_w).

    Points are in continuous coordinates and OpenCV's are pixel indices, whose centres lie half a pixel further.
    """

    def __init__(self, matrix: np.ndarray, size: tuple[int, int], out_size: tuple[int, int], interp: int) -> None:
        super().__init__()
        self._matrix, self._size, self._out_size, self._interp = matrix, size, out_size, interp

    def _warp(self, img: np.ndarray, interp: int) -> np.ndarray:
        assert img.shape[:2] == self._size, f"Made for (h, w) = {self._size}, got an image of shape {img.shape}."
        linear, shift = self._matrix[:, :2], self._matrix[:, 2]
        shift = linear @ (0.5, 0.5) + shift - 0.5
        # OpenCV knows no bool and no long integers; float64 holds every label exactly.
        values = img if img.dtype in (np.uint8, np.int16, np.uint16, np.float32) else img.astype(np.float64)
        out_h, out_w = self._out_size
        warped = cv2.warpAffine(values, np.column_stack([linear, shift]), (out_w, out_h), flags=interp)
        return warped.reshape((out_h, out_w, *img.shape[2:])).astype(img.dtype, copy=False)

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Warp (H, W) or (H, W, C); what comes from outside is 0."""
        return self._warp(img, self._interp if interp is None else interp)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._warp(segmentation, cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move (N, 2) points x, y."""
        points = np.asarray(coords, dtype=np.float64).reshape(-1, 2)
        return points @ self._matrix[:, :2].T + self._matrix[:, 2]

    def inverse(self) -> Transform:
        back = cv2.invertAffineTransform(self._matrix)
        return _AffineTransform(back, self._out_size, self._size, self._interp)


class RotationTransform(_AffineTransform):
    """Rotate counter-clockwise by `angle` degrees."""

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        """
        Args:
            h, w: size of the image.
            angle: in degrees.
            expand: grow the image so that nothing is cut off; the rotated image is centred in it.
            center: x, y of the point to rotate about; the middle of the image if None.
            interp: one of OpenCV's; linear if None.
        """
        self.h, self.w, self.angle = h, w, angle
        self.expand, self.center, self.interp = expand, center, interp
        middle = (w / 2, h / 2)
        if angle % 360 == 0:
            matrix: np.ndarray = np.eye(2, 3)
            bound_h, bound_w = h, w
        else:
            matrix = cv2.getRotationMatrix2D(middle if center is None else tuple(center), angle, 1.0)
            cos, sin = np.abs(matrix[0, :2])
            bound_h, bound_w = h, w
            if expand:
                bound_h, bound_w = int(np.rint(h * cos + w * sin)), int(np.rint(h * sin + w * cos))
                moved_middle = matrix[:, :2] @ middle + matrix[:, 2]
                matrix[:, 2] += np.subtract((bound_w / 2, bound_h / 2), moved_middle)
        self.bound_h, self.bound_w = bound_h, bound_w
        super().__init__(matrix, (h, w), (bound_h, bound_w), cv2.INTER_LINEAR if interp is None else interp)


class ExtentTransform(Transform):
    """Cut out a rectangle, which may reach beyond the image, and resize it."""

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.BILINEAR,
        fill: int = 0,
    ) -> None:
        """
        Args:
            src_rect: x0, y0, x1, y1 in the input.
            output_size: (h, w).
            interp: one of Pillow's.
            fill: value of pixels from outside.
        """
        super().__init__()
        self.src_rect, self.output_size = src_rect, output_size
        self.interp, self.fill = interp, fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Transform (H, W), (H, W, 1) or (H, W, 3)."""
        out_h, out_w = self.output_size
        flat = img[..., 0] if img.ndim == 3 and img.shape[2] == 1 else img
        picture = Image.fromarray(flat).transform(
            size=(out_w, out_h),
            method=Image.EXTENT,
            data=tuple(self.src_rect),
            resample=self.interp if interp is None else interp,
            fill=self.fill,
        )
        return np.asarray(picture).reshape((out_h, out_w, *img.shape[2:]))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move (N, 2) points x, y."""
        x0, y0, x1, y1 = self.src_rect
        out_h, out_w = self.output_size
        return (np.asarray(coords, dtype=np.float64) - (x0, y0)) * (out_w / (x1 - x0), out_h / (y1 - y0))


class ColorTransform(Transform):
    """Change colours by a function from image to image; labels and coordinates stay."""

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        """
        Raises:
            ValueError: if `op` cannot be called.
        """
        if not callable(op):
            raise ValueError(f"{type(self).__name__} needs a function from image to image, got {op!r}.")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def inverse(self) -> Transform:
        """Nothing moves, so there is nothing to undo."""
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """A `ColorTransform` whose function takes and returns a Pillow image."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        picture: Any = Image.fromarray(img)
        return np.asarray(self.op(picture))
