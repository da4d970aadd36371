"""Steps from a dataset dict to training examples: read, check, transform, collect.

H W size of an image, N instances. Box coordinates are continuous (see `detectron2.data.transforms`).
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image, UnidentifiedImageError

from detectron2._unsupported import refuse
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager

from . import transforms as T
from .catalog import MetadataCatalog

logger = logging.getLogger(__name__)

Annotation = dict[str, Any]


class SizeMismatchError(ValueError):
    """An image is not of the size its annotations are made for."""


class UnreadableImageError(OSError, ValueError):
    """A file is no image, a damaged one, or one that cannot be had in the format asked for."""


# ---- images ----

_RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])

# What to do so that an image stored with this EXIF orientation (tag 274) stands upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image, turned upright as its EXIF orientation says.

    Transparency is dropped. Grey images of 16 bit asked for in a colour format are scaled to 8 bit (divided by 257),
    where Pillow would clip them to white; the full range of 16 bit becomes the full range of 8.

    Args:
        file_name: a path, or whatever PathManager opens.
        format: a mode of Pillow ("RGB", "L", ...), "BGR", "YUV-BT.601", or None for the mode of the file.

    Returns:
        (H, W, C) uint8, possibly read-only, and a view with negative strides for "BGR"; (H, W, 1) for "L"; float for
        "YUV-BT.601". With None also (H, W): label images, palette indices, or uint16 from a grey image of 16 bit.

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableImageError: (an OSError and a ValueError) if it is no complete image, or has no such format.
    """
    with PathManager.open(file_name, "rb") as file:
        try:
            image = Image.open(file)
            image.load()
        except UnidentifiedImageError as error:
            raise UnreadableImageError(
                f"{file_name} is not an image in a format that Pillow {Image.__version__} knows. "
                "Check that it is the right file and not an error page or a Git LFS pointer."
            ) from error
        except Image.DecompressionBombError as error:
            raise UnreadableImageError(
                f"{file_name}: {error} Raise PIL.Image.MAX_IMAGE_PIXELS if the file is to be trusted, or cut it up."
            ) from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise UnreadableImageError(
                f"{file_name} is damaged or incomplete ({error}). Copy or download it again, or remove it from the "
                "data set."
            ) from error
        try:
            return _to_array(_upright(image, file_name), format)
        except ValueError as error:
            raise UnreadableImageError(
                f"{file_name} (mode {image.mode}) cannot be read in format {format!r}: {error}"
            ) from error


def _upright(image: Image.Image, file_name: str) -> Image.Image:
    try:
        orientation = image.getexif().get(274)
    except SyntaxError as error:  # What Pillow raises for a broken block; the pixels are fine.
        logger.warning("%s: EXIF data cannot be read (%s); the image is taken as stored.", file_name, error)
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_array(image: Image.Image, format: str | None) -> np.ndarray:
    if format is None:
        pixels = np.asarray(image)
        # TIFF may store the two bytes the other way round, which torch does not take.
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if image.mode.startswith("I") and format not in (image.mode, "I", "F"):
        image = _to_eight_bit(image, is_label=format == "L")
    elif image.mode == "F" and format != "F":
        raise ValueError("floating-point pixels have no known range. Convert the file to 8 or 16 bit.")
    if format == "BGR":
        return np.asarray(image.convert("RGB"))[:, :, ::-1]
    if format == "YUV-BT.601":
        return (np.asarray(image.convert("RGB")) / 255.0) @ _RGB_TO_YUV.T
    pixels = np.asarray(image.convert(format))
    return pixels[:, :, None] if format == "L" else pixels


def _to_eight_bit(image: Image.Image, is_label: bool) -> Image.Image:
    """Bring more than 8 bit to 8: photos by scaling, labels as they are or not at all."""
    pixels = np.asarray(image)
    low, high = int(pixels.min()), int(pixels.max())
    if is_label:
        if low < 0 or high > 255:
            raise ValueError(
                f"its values reach from {low} to {high}, and format 'L' holds 0 to 255. Read labels with format=None; "
                "convert a photo to 8 bit."
            )
        return Image.fromarray(pixels.astype(np.uint8))
    if low < 0 or high > 65535:
        raise ValueError(f"its values reach from {low} to {high}, expected 16 bit. Convert the file to 8 or 16 bit.")
    return Image.fromarray(np.round(pixels / 257).astype(np.uint8))


def read_label_map(file_name: str) -> np.ndarray:
    """Read a semantic label image: grey of 8 or 16 bit, palette indices, or grey stored as three equal channels.

    Returns:
        (H, W) of integers.

    Raises:
        UnreadableImageError: as `read_image`, and for a colour image, whose labels would have to be guessed.
    """
    labels = read_image(file_name)
    if labels.ndim == 3:
        colours = labels[..., : 1 if labels.shape[2] == 2 else 3]
        if (colours != colours[..., :1]).any():
            raise UnreadableImageError(
                f"{file_name} is a colour image, expected one label in each pixel. Convert it to a grey or palette "
                "PNG whose values are class indices."
            )
        labels = colours[..., 0]
    if labels.dtype.kind == "f":
        raise UnreadableImageError(f"{file_name} has floating-point pixels, expected class indices: integers.")
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare an image with the "height" and "width" of its dataset dict; fill in those that are missing.

    Raises:
        SizeMismatchError: (a ValueError) if one of them differs.
    """
    height, width = image.shape[:2]
    expected = (dataset_dict.setdefault("width", width), dataset_dict.setdefault("height", height))
    if expected != (width, height):
        name = f" {dataset_dict['file_name']}" if "file_name" in dataset_dict else ""
        raise SizeMismatchError(
            f"Mismatched image shape for image{name}, got {(width, height)}, expect {expected}. "
            "Please check the width/height in your annotation."
        )


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str | None) -> np.ndarray:
    """Undo `read_image`'s format, for drawing.

    Args:
        image: (H, W, C).
        format: as given to `read_image`.

    Returns:
        (H, W, 3) uint8; (H, W) for "L".
    """
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, ::-1]
    if format == "L":
        return image[:, :, 0]
    if format == "YUV-BT.601":
        return np.round((image @ _YUV_TO_RGB.T) * 255.0).clip(0, 255).astype(np.uint8)
    return image if format == "RGB" else np.asarray(Image.fromarray(image, mode=format).convert("RGB"))


# ---- annotations ----


def _rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8 from COCO's run lengths, compressed or not."""
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, *rle["size"])
    return mask_util.decode(rle)


def _box(annotation: Annotation) -> np.ndarray:
    """(4,) XYXY_ABS."""
    missing = [key for key in ("bbox", "bbox_mode") if key not in annotation]
    if missing:
        raise ValueError(
            f"An annotation has no {' and no '.join(missing)}, only {sorted(annotation)}. Every annotation needs a "
            "box as 4 numbers in `bbox` and their meaning in `bbox_mode`, such as BoxMode.XYWH_ABS."
        )
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return np.asarray(box, dtype=np.float64)


def transform_instance_annotations(
    annotation: Annotation,
    transforms: "T.Transform | Sequence[T.Transform]",
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> Annotation:
    """Move the box and the mask of an annotation along with its image, in place.

    Args:
        annotation: with "bbox" and "bbox_mode", and perhaps "segmentation": polygons or run lengths.
        transforms: what was done to the image.
        image_size: (H, W) of the image afterwards.
        keypoint_hflip_indices: accepted for callers of upstream; keypoints are not supported.

    Returns:
        The annotation: box in XYXY_ABS within the image (it may be empty), polygons as flat arrays (a crop may leave
        none), run lengths as an (H, W) uint8 mask.

    Raises:
        ValueError: for a polygon of less than three points, or a segmentation of another kind.
    """
    if "keypoints" in annotation:
        refuse("data.detection_utils.transform_keypoint_annotations")
    if isinstance(transforms, (list, tuple)):
        transforms = T.TransformList(transforms)
    height, width = image_size
    moved = transforms.apply_box(_box(annotation)[None])[0]
    annotation["bbox"] = moved.clip(0, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS

    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        # PolygonMasks checks them: shapely's own complaint would not name the cause.
        polygons = PolygonMasks([segmentation]).polygons[0]
        moved_polygons = transforms.apply_polygons([polygon.reshape(-1, 2).copy() for polygon in polygons])
        annotation["segmentation"] = [points.reshape(-1) for points in moved_polygons]
    elif isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(_rle_to_mask(segmentation))
        assert mask.shape[:2] == tuple(image_size), (
            f"A run-length mask is {mask.shape[:2]} after the transforms, and its image {tuple(image_size)}: "
            "the annotation is of another image size."
        )
        annotation["segmentation"] = mask
    elif "segmentation" in annotation:
        raise ValueError(
            f"Cannot transform a segmentation of type {type(segmentation).__name__}. Supported are polygons as a list "
            "of [x0, y0, x1, y1, ...], and COCO run lengths as a dict."
        )
    return annotation


def annotations_to_instances(
    annos: Sequence[Annotation], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Collect the annotations of an image.

    Args:
        annos: as `transform_instance_annotations` leaves them.
        image_size: (H, W).
        mask_format: "polygon" or "bitmask".

    Returns:
        Instances with gt_boxes, gt_classes (N,) int64 and, if annotations have a segmentation, gt_masks: PolygonMasks
        or BitMasks.

    Raises:
        ValueError: for a mask of a kind that the format does not take, or masks on a part of the annotations.
    """
    target = Instances((image_size[0], image_size[1]))
    target.gt_boxes = Boxes(np.stack([_box(anno) for anno in annos]) if annos else np.zeros((0, 4)))
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)

    masks = [anno["segmentation"] for anno in annos if "segmentation" in anno]
    if not masks:
        return target
    if len(masks) < len(annos):
        raise ValueError(
            f"{len(annos) - len(masks)} of {len(annos)} annotations of an image have no `segmentation`. "
            "Add masks to them or remove them."
        )
    if mask_format == "polygon":
        target.gt_masks = _polygon_masks(masks)
    elif mask_format == "bitmask":
        target.gt_masks = BitMasks(np.stack([_to_bitmap(mask, image_size) for mask in masks]))
    else:
        raise ValueError(f"mask_format is 'polygon' or 'bitmask', got {mask_format!r}.")
    return target


def _polygon_masks(masks: list[Any]) -> PolygonMasks:
    try:
        return PolygonMasks(masks)
    except ValueError as error:
        raise ValueError(
            f"Failed to use mask_format=='polygon' from the given annotations: {error} "
            "For masks that are no polygons set INPUT.MASK_FORMAT to 'bitmask'."
        ) from error


def _to_bitmap(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from polygons, run lengths or a bitmap."""
    if isinstance(segmentation, list):
        mask = polygons_to_bitmask(PolygonMasks([segmentation]).polygons[0], *image_size)
    elif isinstance(segmentation, dict):
        mask = _rle_to_mask(segmentation)
    elif isinstance(segmentation, np.ndarray):
        mask = segmentation
    else:
        raise ValueError(
            f"Cannot make a bit mask from {type(segmentation).__name__}. Supported are polygons as a list of "
            "[x0, y0, x1, y1, ...], COCO run lengths as a dict, and a bitmap as a 2-D array."
        )
    if mask.shape != tuple(image_size):
        raise ValueError(f"A mask has shape {mask.shape}, and its image is {tuple(image_size)}.")
    return mask.astype(bool)


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Drop instances that a crop has left nothing of.

    Args:
        instances: with gt_boxes, and perhaps gt_masks.
        by_box: drop those with a side not above `box_threshold`.
        by_mask: drop those with an empty mask.
        return_mask: also return (N,) bool, True where an instance is kept.
    """
    assert by_box or by_mask, "filter_empty_instances has nothing to filter by."
    kept = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        kept &= instances.gt_boxes.nonempty(threshold=box_threshold).cpu()
    if by_mask and instances.has("gt_masks"):
        kept &= instances.gt_masks.nonempty().cpu()
    return (instances[kept], kept) if return_mask else instances[kept]


# ---- from config, and the rest ----


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The default augmentations: resize, and in training flip."""
    part = "TRAIN" if is_train else "TEST"
    style = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING if is_train else "choice"
    steps: list[T.Augmentation] = [
        T.ResizeShortestEdge(cfg.INPUT[f"MIN_SIZE_{part}"], cfg.INPUT[f"MAX_SIZE_{part}"], style)
    ]
    if is_train and cfg.INPUT.RANDOM_FLIP != "none":
        direction = cfg.INPUT.RANDOM_FLIP
        steps.append(T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical"))
    return steps


build_transform_gen = build_augmentation


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """See that data sets used together agree on a piece of metadata.

    Raises:
        ValueError: if they do not.
    """
    if len(dataset_names) == 0:
        raise ValueError("check_metadata_consistency got no data sets.")
    values = [getattr(MetadataCatalog.get(name), key, None) for name in dataset_names]
    for name, value in zip(dataset_names, values):
        if value != values[0]:
            raise ValueError(
                f"Data sets used together differ in metadata '{key}': {dataset_names[0]} has {values[0]}, {name} has "
                f"{value}. Register them with the same value."
            )


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: Annotation
) -> T.CropTransform:
    """A random window of `crop_size`, within the image, that holds the centre of an instance; sizes are (h, w)."""
    x0, y0, x1, y1 = _box(instance)
    center = np.array([(y0 + y1) / 2, (x0 + x1) / 2])
    size = np.array(image_size)
    if (center < 0).any() or (center > size).any():
        raise ValueError(f"The box {(x0, y0, x1, y1)} has its centre outside the image of (h, w) = {image_size}.")
    window = np.minimum(crop_size, size)
    lowest = np.maximum(np.floor(center).astype(int) - window, 0)
    highest = np.maximum(np.minimum(size - window, np.ceil(center).astype(int)), lowest)
    top, left = (int(np.random.randint(low, high + 1)) for low, high in zip(lowest, highest))
    return T.CropTransform(left, top, int(window[1]), int(window[0]))


def transform_proposals(*args: Any, **kwargs: Any) -> None:
    """Stub: precomputed proposals are for models of upstream detectron2."""
    refuse("data.detection_utils.transform_proposals")


def create_keypoint_hflip_indices(*args: Any, **kwargs: Any) -> None:
    """Stub: keypoints are for models of upstream detectron2."""
    refuse("data.detection_utils.create_keypoint_hflip_indices")
