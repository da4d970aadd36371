"""The five published training mappers: a dataset dict in, an image with one mask per target out.

They share one body (read, augment, pad, cut into masks) and differ in their augmentations and in where the masks
come from: a semantic label map, a panoptic PNG with its segments, or instance annotations.
H W size of the augmented image, G targets of one image.
"""

import copy
import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import shapely
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from panopticapi.utils import rgb2id
from PIL import Image
from torch import Tensor

IMAGE_PAD_VALUE = 128
# What padding by 255 (or, in older detectron2, by 128) looks like in a colour-coded map of segment ids.
PADDED_IDS = (rgb2id((255, 255, 255)), rgb2id((128, 128, 128)))


class _TrainingMapper:
    """The body of every mapper. Subclasses say how their targets are read."""

    with_boxes = False  # the large-scale-jitter mappers also give gt_boxes

    def _configure(
        self,
        is_train: bool,
        augmentations: Sequence[Any],
        image_format: str,
        size_divisibility: int = -1,
        ignore_label: int = 255,
        num_classes: int | None = None,
    ) -> None:
        if not is_train:
            raise ValueError(
                f"{type(self).__name__} makes training targets; use detectron2's DatasetMapper for testing."
            )
        self.is_train = is_train
        self.augmentations = list(augmentations)
        self.image_format = image_format
        self.size_divisibility = size_divisibility
        self.ignore_label = ignore_label
        self.num_classes = num_classes

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Args: one dict of a detectron2 dataset. Returns: a copy with

        `image` (C, H, W) uint8; `instances` with `gt_classes` (G,) int64 and `gt_masks` (G, H, W); `sem_seg` (H, W)
        int64 from semantic labels; `padding_mask` (H, W) bool, True on padding, from `coco_instance_lsj`.

        Raises:
            ValueError: labels that are missing, have another size than the image, or hold unknown classes or ids.
        """
        # Annotations can be long, and are only read.
        dataset_dict = {k: v if k == "annotations" else copy.deepcopy(v) for k, v in dataset_dict.items()}
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        self._map(dataset_dict, image)
        return dataset_dict

    def _map(self, dataset_dict: dict[str, Any], image: np.ndarray) -> None:
        raise NotImplementedError

    # Steps, in the order the mappers take them.

    def _read_labels(self, dataset_dict: dict[str, Any], key: str, image: np.ndarray) -> np.ndarray:
        """The label image named by `key`, checked against the size of the image."""
        if key not in dataset_dict:
            raise ValueError(
                f"{type(self).__name__} needs '{key}' in the dataset dict of {dataset_dict['file_name']}: "
                "is INPUT.DATASET_MAPPER_NAME the mapper for this dataset's task?"
            )
        file_name = dataset_dict.pop(key)
        labels = utils.read_image(file_name, "RGB" if key == "pan_seg_file_name" else None)
        if labels.shape[:2] != image.shape[:2]:
            raise ValueError(
                f"Label image {file_name} is {labels.shape[1]}x{labels.shape[0]}, but its image "
                f"{dataset_dict['file_name']} is {image.shape[1]}x{image.shape[0]}: they must be of one size."
            )
        return labels

    def _finish(self, dataset_dict: dict[str, Any], image: np.ndarray, classes: list[int], masks: Tensor) -> None:
        """Store the image and its targets, padded to `size_divisibility` when that is set; empty masks are dropped."""
        self._check_classes(dataset_dict, classes)
        masks = self._pad(masks, 0)
        filled = masks.flatten(1).any(1)
        masks = masks if filled.all() else masks[filled]
        boxes = BitMasks(masks).get_bounding_boxes() if self.with_boxes and len(masks) else Boxes(torch.zeros((0, 4)))
        self._store(dataset_dict, image, torch.tensor(classes, dtype=torch.int64)[filled], masks, boxes)

    def _finish_annotations(
        self,
        dataset_dict: dict[str, Any],
        image: np.ndarray,
        annotations: list[dict[str, Any]],
        transforms: T.TransformList,
    ) -> None:
        """As `_finish`, for the non-crowd `annotations` as they are after `transforms`."""
        size = tuple(image.shape[:2])
        height, width = (self.size_divisibility,) * 2 if self.size_divisibility > 0 else size
        # What is padded is no part of an instance, and what is cut off to fit is not drawn.
        classes, shapes = _annotation_shapes(annotations, transforms, size, (min(height, size[0]), min(width, size[1])))
        self._check_classes(dataset_dict, classes)
        areas = mask_util.area(shapes) if shapes else []
        kept = [n for n, area in enumerate(areas) if area > 0]
        boxes = mask_util.toBbox([shapes[n] for n in kept]) if kept else np.zeros((0, 4))  # x, y, width, height
        masks = np.zeros((len(kept), height, width), dtype=bool)  # NumPy's zeros take no memory until written to
        for n, shape in enumerate(kept):
            _decode(shapes[shape], boxes[n].astype(int).tolist(), masks[n])
        boxes[:, 2:] += boxes[:, :2]
        gt_classes = torch.tensor([classes[n] for n in kept], dtype=torch.int64)
        self._store(dataset_dict, image, gt_classes, torch.from_numpy(masks), Boxes(boxes))

    def _store(
        self, dataset_dict: dict[str, Any], image: np.ndarray, classes: Tensor, masks: Tensor, boxes: Boxes
    ) -> None:
        image_tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))  # (C, H, W)
        dataset_dict["image"] = self._pad(image_tensor, IMAGE_PAD_VALUE)
        instances = Instances(tuple(dataset_dict["image"].shape[-2:]))
        instances.gt_classes = classes
        instances.gt_masks = masks if len(masks) else masks.float()
        if self.with_boxes:
            instances.gt_boxes = boxes
        dataset_dict["instances"] = instances

    def _pad(self, x: Tensor, value: float) -> Tensor:
        """Pad (..., h, w) at the right and bottom to `size_divisibility`; what is larger is cropped to it."""
        if self.size_divisibility <= 0:
            return x
        height, width = x.shape[-2:]
        return F.pad(
            x, (0, self.size_divisibility - width, 0, self.size_divisibility - height), value=value
        ).contiguous()

    def _check_classes(self, dataset_dict: dict[str, Any], classes: list[int]) -> None:
        most = float("inf") if self.num_classes is None else self.num_classes - 1
        for value in classes:
            if not isinstance(value, (int, np.integer)) or not 0 <= value <= most:
                raise ValueError(
                    f"{dataset_dict['file_name']} has class {value}, expected 0 to {most} "
                    "(MODEL.SEM_SEG_HEAD.NUM_CLASSES): fix the labels, the ignore label or the number of classes."
                )


def _segment_masks(dataset_dict: dict[str, Any], ids: np.ndarray) -> tuple[list[int], Tensor]:
    """Classes and masks (G, h, w) of the non-crowd segments of a panoptic map `ids` (h, w).

    Raises:
        ValueError: the map holds an id that the segments do not list.
    """
    classes, masks = [], []
    explained = int(np.isin(ids, (0, *PADDED_IDS)).sum())
    for segment in dataset_dict["segments_info"]:
        mask = ids == segment["id"]
        explained += 0 if segment["id"] in PADDED_IDS else int(mask.sum())
        if not segment.get("iscrowd", 0):
            classes.append(segment["category_id"])
            masks.append(mask)
    if explained != ids.size:
        known = {segment["id"] for segment in dataset_dict["segments_info"]} | {0, *PADDED_IDS}
        unknown = min(set(np.unique(ids).tolist()) - known)
        raise ValueError(
            f"The panoptic PNG of {dataset_dict['file_name']} has segment id {unknown}, which its json does not list: "
            "PNG and json do not belong together."
        )
    return classes, _stack(masks, ids.shape)


def _stack(masks: list[np.ndarray], size: Sequence[int]) -> Tensor:
    """(G, h, w) bool from G masks (h, w)."""
    return torch.from_numpy(np.stack(masks)) if masks else torch.zeros((0, *size[:2]), dtype=torch.bool)


def _pop_annotations(dataset_dict: dict[str, Any], mapper: _TrainingMapper) -> list[dict[str, Any]]:
    if "annotations" not in dataset_dict:
        raise ValueError(
            f"{type(mapper).__name__} needs instance 'annotations' in the dataset dict of {dataset_dict['file_name']}: "
            "is INPUT.DATASET_MAPPER_NAME the mapper for this dataset's task?"
        )
    annotations = dataset_dict.pop("annotations")
    for number, annotation in enumerate(annotations):
        polygons = annotation.get("segmentation")
        if isinstance(polygons, list) and not all(np.isfinite(polygon).all() for polygon in polygons):
            raise ValueError(
                f"{dataset_dict['file_name']}: a polygon of annotation {annotation.get('id', number)} has a coordinate "
                "that is NaN or infinite: correct or remove the annotation."
            )
    return annotations


def _annotation_shapes(
    annotations: list[dict[str, Any]], transforms: T.TransformList, size: tuple[int, int], canvas: tuple[int, int]
) -> tuple[list[int], list[dict[str, Any]]]:
    """Classes and COCO run lengths, cut to `canvas`, of the non-crowd annotations.

    Args:
        size: (H, W) of the image after `transforms`.
        canvas: (h, w), at most as large.
    """
    classes, shapes = [], []
    for annotation in annotations:
        if annotation.get("iscrowd", 0) or "segmentation" not in annotation:
            continue
        missing = [key for key in ("bbox", "bbox_mode", "category_id") if key not in annotation]
        if missing:
            raise ValueError(f"An annotation has no {' and no '.join(missing)}, only {sorted(annotation)}.")
        shape = annotation["segmentation"]
        if isinstance(shape, list):
            shapes.append(_encode(_move(PolygonMasks([shape]).polygons[0], transforms), canvas))
        else:
            copied = {key: value for key, value in annotation.items() if key != "keypoints"}
            bitmap = utils.transform_instance_annotations(copied, transforms, size)["segmentation"]
            bitmap = bitmap[: canvas[0], : canvas[1]] == 1  # a crop pads with another value
            shapes.append(mask_util.encode(np.asfortranarray(bitmap)))
        classes.append(annotation["category_id"])
    return classes, shapes


def _move(polygons: list[np.ndarray], transforms: T.TransformList) -> list[np.ndarray]:
    """Flat polygons after `transforms`; a crop cuts off what is outside of its window, which may be all."""
    moved = [polygon.reshape(-1, 2).astype(np.float64) for polygon in polygons]  # transforms may change them in place
    for step in transforms.transforms:
        if moved and isinstance(step, T.CropTransform):
            # Cutting is slow, and needless where the window holds all of a polygon or nothing. It also repairs
            # polygons that cross themselves.
            low, high = np.min([p.min(0) for p in moved], 0), np.max([p.max(0) for p in moved], 0)
            start, end = np.array([step.x0, step.y0]), np.array([step.x0 + step.w, step.y0 + step.h])
            if (high < start).any() or (low > end).any():
                return []
            if (low >= start).all() and (high <= end).all() and all(shapely.is_valid(shapely.polygons(moved))):
                moved = [step.apply_coords(polygon) for polygon in moved]
                continue
        moved = step.apply_polygons(moved)
    return [polygon.reshape(-1) for polygon in moved]


def _encode(polygons: list[np.ndarray], size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths of one instance's polygons, on a canvas that ends, if before `size`, just right of and below them."""
    if not polygons:
        return {"size": [1, 1], "counts": b"1"}  # one pixel, of the background
    parts = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
    right, bottom = (max(int(max(part[axis::2].max() for part in parts)) + 2, 1) for axis in (0, 1))
    encoded = mask_util.frPyObjects([part.tolist() for part in parts], min(bottom, size[0]), min(right, size[1]))
    return encoded[0] if len(encoded) == 1 else mask_util.merge(encoded)


def _decode(shape: dict[str, Any], box: Sequence[int], mask: np.ndarray) -> None:
    """Set the pixels of run lengths within `box` (x, y, width, height) in a mask (h, w) of zeros."""
    x, y, width, height = box
    rows = shape["size"][0]
    counts = shape["counts"]
    # Run lengths go down the columns, and the first one is of background: shortened, it leaves out columns on the left.
    end = next(i for i, code in enumerate(counts) if not (code - 48) & 32) + 1
    first = sum(((code - 48) & 31) << 5 * i for i, code in enumerate(counts[:end]))
    block = mask_util.decode(
        {"size": [rows, shape["size"][1] - x], "counts": _run_length(first - x * rows) + counts[end:]}
    )
    mask[y : y + height, x : x + width] = block[y : y + height, :width]


def _run_length(count: int) -> bytes:
    """One number of COCO's compressed run lengths: five bits a character, low ones first, 32 if more follow."""
    codes: list[int] = []
    while not codes or codes[-1] & 32:
        low, count = count & 31, count >> 5
        # The highest bit of the last character is the sign.
        codes.append(low | 32 if count or low & 16 else low)
    return bytes(code + 48 for code in codes)


# Crop-based mappers (ADE20K, Cityscapes, Mapillary Vistas)


def _crop_augmentations(cfg: CfgNode, category_area: bool, ignore_label: int | None = None) -> list[Any]:
    """Resize the shortest edge, crop, jitter colours, flip; `category_area` keeps crops from showing one class only."""
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    augmentations: list[Any] = [
        T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    crop = cfg.INPUT.CROP
    if crop.ENABLED and category_area:
        area = crop.SINGLE_CATEGORY_MAX_AREA
        augmentations.append(T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, area, ignore_label))
    elif crop.ENABLED:
        augmentations.append(T.RandomCrop(crop.TYPE, crop.SIZE))
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    return [*augmentations, T.RandomFlip()]


class MaskFormerSemanticDatasetMapper(_TrainingMapper):
    """`mask_former_semantic`: one mask per class in the semantic label map, without the ignore label."""

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[Any],
        image_format: str,
        ignore_label: int,
        size_divisibility: int,
        num_classes: int | None = None,
    ) -> None:
        """`ignore_label` marks unlabelled pixels; `size_divisibility` > 0 is the size everything is padded to."""
        self._configure(is_train, augmentations, image_format, size_divisibility, ignore_label, num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        ignore_label = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("ignore_label", 255)
        return {
            "is_train": is_train,
            "augmentations": _crop_augmentations(cfg, category_area=True, ignore_label=ignore_label),
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": ignore_label,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }

    def _map(self, dataset_dict: dict[str, Any], image: np.ndarray) -> None:
        self._refuse_annotations(dataset_dict)
        image, sem_seg, _ = self._augment(image, self._read_labels(dataset_dict, "sem_seg_file_name", image))
        assert sem_seg is not None
        dataset_dict["sem_seg"] = self._pad(torch.from_numpy(sem_seg), self.ignore_label)
        classes = [int(c) for c in np.unique(sem_seg) if c != self.ignore_label]
        self._finish(dataset_dict, image, classes, _stack([sem_seg == c for c in classes], sem_seg.shape))

    def _refuse_annotations(self, dataset_dict: dict[str, Any]) -> None:
        if "annotations" in dataset_dict:
            raise ValueError(
                f"{type(self).__name__} found instance 'annotations' in the dataset dict of "
                f"{dataset_dict['file_name']}: use the mapper 'mask_former_instance' for instance data."
            )

    def _augment(
        self, image: np.ndarray, sem_seg: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None, T.TransformList]:
        """Augmented image, label map as (h, w) int64, and the transforms that were drawn.

        Label maps travel as float64, which detectron2 resizes by another nearest-neighbour rule than uint8: the
        published training targets come from that rule.
        """
        aug_input = T.AugInput(image, sem_seg=None if sem_seg is None else sem_seg.astype("double"))
        _, transforms = T.apply_transform_gens(self.augmentations, aug_input)  # in place
        labels = aug_input.sem_seg
        return aug_input.image, None if labels is None else np.ascontiguousarray(labels).astype(np.int64), transforms


class MaskFormerPanopticDatasetMapper(MaskFormerSemanticDatasetMapper):
    """`mask_former_panoptic`: one mask per non-crowd panoptic segment."""

    def _map(self, dataset_dict: dict[str, Any], image: np.ndarray) -> None:
        self._refuse_annotations(dataset_dict)
        sem_seg = None
        if "sem_seg_file_name" in dataset_dict:
            sem_seg = self._read_labels(dataset_dict, "sem_seg_file_name", image)
        panoptic = self._read_labels(dataset_dict, "pan_seg_file_name", image)
        image, sem_seg, transforms = self._augment(image, sem_seg)
        if sem_seg is not None:
            dataset_dict["sem_seg"] = self._pad(torch.from_numpy(sem_seg), self.ignore_label)
        ids = rgb2id(transforms.apply_segmentation(panoptic))  # stays uint8 RGB until here, see _augment
        self._finish(dataset_dict, image, *_segment_masks(dataset_dict, ids))


class MaskFormerInstanceDatasetMapper(_TrainingMapper):
    """`mask_former_instance`: one mask per non-crowd instance annotation (polygons or RLE)."""

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[Any],
        image_format: str,
        size_divisibility: int,
        num_classes: int | None = None,
    ) -> None:
        self._configure(is_train, augmentations, image_format, size_divisibility, num_classes=num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": _crop_augmentations(cfg, category_area=False),
            "image_format": cfg.INPUT.FORMAT,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }

    def _map(self, dataset_dict: dict[str, Any], image: np.ndarray) -> None:
        annotations = _pop_annotations(dataset_dict, self)
        image, transforms = T.apply_transform_gens(self.augmentations, image)
        self._finish_annotations(dataset_dict, image, annotations, transforms)


# Large-scale jitter (COCO)


def build_transform_gen(cfg: CfgNode, is_train: bool) -> list[Any]:
    """Flip, resize by MIN_SCALE to MAX_SCALE of IMAGE_SIZE, crop or pad to IMAGE_SIZE (Ghiasi et al., 2021).

    Raises:
        ValueError: asked for testing, which has no jitter.
    """
    if not is_train:
        raise ValueError("Large-scale jitter is for training; use detectron2's DatasetMapper for testing.")
    size = cfg.INPUT.IMAGE_SIZE
    jitter = [
        T.ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, target_height=size, target_width=size),
        T.FixedSizeCrop(crop_size=(size, size)),
    ]
    if cfg.INPUT.RANDOM_FLIP == "none":
        return jitter
    vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
    return [T.RandomFlip(horizontal=not vertical, vertical=vertical), *jitter]


def _jitter(augmentations: Sequence[Any], image: np.ndarray) -> tuple[np.ndarray, T.TransformList]:
    """As `T.apply_transform_gens`; an image that is enlarged and cropped is only computed where the crop keeps it."""
    jitters = [type(augmentation) for augmentation in augmentations[-2:]] == [T.ResizeScale, T.FixedSizeCrop]
    if not jitters or not augmentations[-1].pad or not _has_numba():
        return T.apply_transform_gens(augmentations, image)
    image, before = T.apply_transform_gens(augmentations[:-2], image)
    resize = augmentations[-2].get_transform(image)
    size = resize.new_h, resize.new_w
    # The crop looks at nothing but the size.
    crop, pad = augmentations[-1].get_transform(np.broadcast_to(np.uint8(0), size)).transforms
    transforms = before + T.TransformList([resize, crop, pad])
    enlarges = all(new >= old for new, old in zip(size, image.shape, strict=False))
    if not enlarges or resize.interp != Image.Resampling.BILINEAR or image.shape[2:] != (3,) or image.dtype != np.uint8:
        return T.TransformList([resize, crop, pad]).apply_image(image), transforms
    from .resize_kernels import enlarge_window  # imported here: Numba takes its time to load

    planes = np.full((3, *augmentations[-1].crop_size), pad.pad_value, np.uint8)
    enlarge_window(image, size, crop.y0, crop.x0, planes)
    return planes.transpose(1, 2, 0), transforms


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


class COCOPanopticNewBaselineDatasetMapper(_TrainingMapper):
    """`coco_panoptic_lsj`: large-scale jitter, one mask per non-crowd panoptic segment."""

    with_boxes = True

    @configurable
    def __init__(
        self, is_train: bool = True, *, tfm_gens: Sequence[Any], image_format: str, num_classes: int | None = None
    ) -> None:
        self._configure(is_train, tfm_gens, image_format, num_classes=num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "tfm_gens": build_transform_gen(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }

    def _map(self, dataset_dict: dict[str, Any], image: np.ndarray) -> None:
        dataset_dict.pop("annotations", None)
        dataset_dict.pop("sem_seg_file_name", None)
        panoptic = self._read_labels(dataset_dict, "pan_seg_file_name", image)
        image, transforms = _jitter(self.augmentations, image)
        ids = rgb2id(transforms.apply_segmentation(panoptic))
        self._finish(dataset_dict, image, *_segment_masks(dataset_dict, ids))


class COCOInstanceNewBaselineDatasetMapper(COCOPanopticNewBaselineDatasetMapper):
    """`coco_instance_lsj`: large-scale jitter, one mask per non-crowd instance annotation (polygons or RLE)."""

    def _map(self, dataset_dict: dict[str, Any], image: np.ndarray) -> None:
        annotations = _pop_annotations(dataset_dict, self)
        inside = np.zeros(image.shape[:2], dtype=np.uint8)
        image, transforms = _jitter(self.augmentations, image)
        # Padding is what the crop fills with another value than the zeros that go in.
        dataset_dict["padding_mask"] = torch.from_numpy(transforms.apply_segmentation(inside) != 0)
        self._finish_annotations(dataset_dict, image, annotations, transforms)
        instances = dataset_dict["instances"]
        if len(instances):
            instances.gt_masks = instances.gt_masks.view(torch.uint8)


MAPPERS = {
    "mask_former_semantic": MaskFormerSemanticDatasetMapper,
    "mask_former_panoptic": MaskFormerPanopticDatasetMapper,
    "mask_former_instance": MaskFormerInstanceDatasetMapper,
    "coco_panoptic_lsj": COCOPanopticNewBaselineDatasetMapper,
    "coco_instance_lsj": COCOInstanceNewBaselineDatasetMapper,
}


def build_mapper(cfg: CfgNode) -> Any:
    """The training mapper that INPUT.DATASET_MAPPER_NAME names.

    Raises:
        ValueError: an unknown name. (The published code then silently uses a mapper the model cannot train on.)
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPERS:
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME is '{name}', expected one of: {', '.join(MAPPERS)}.")
    return MAPPERS[name](cfg, True)
