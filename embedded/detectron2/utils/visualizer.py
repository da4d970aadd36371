"""Pictures of predictions and annotations: masks with contours, boxes, and labels at the objects.

Drawn with OpenCV and Pillow straight into an array; there is no figure and no axis behind it. RGB in, RGB out.
Colours are those of the metadata, or else a fixed palette; objects of one class get shades of its colour, always the
same ones.
"""

import colorsys
from collections import Counter
from collections.abc import Sequence
from enum import Enum, unique
from typing import Any

import cv2
import numpy as np
import torch
from panopticapi.utils import rgb2id
from PIL import Image

from ._canvas import RGB, Color, parse_color
from ._masks import GenericMask, binary, to_numpy
from ._primitives import Primitives, Region, VisImage
from .colormap import NUM_COLORS, colormap

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

_OFF_WHITE = (1.0, 1.0, 240 / 255)
_KEYPOINT_THRESHOLD = 0.05


@unique
class ColorMode(Enum):
    """How instances are coloured: IMAGE lightly over the image, SEGMENTATION strongly in the colours of the metadata,
    IMAGE_BW lightly over an image that is grey wherever there is no instance."""

    IMAGE = 0
    SEGMENTATION = 1
    IMAGE_BW = 2


class Visualizer(Primitives):
    """Draws on one image. Every method that draws returns the picture so far.

    Args:
        img_rgb: (H, W, 3), 0 to 255.
        metadata: class names and colours; by default none, so that labels are numbers.
        scale: the picture is this many times larger than the image.
        instance_mode: see ColorMode.
        font_size_scale: makes the letters larger or smaller.
    """

    def __init__(
        self, img_rgb: np.ndarray, metadata: Any = None, scale: float = 1.0, instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:  # fmt: skip
        if metadata is None:
            from detectron2.data import MetadataCatalog  # only here, so that drawing does not import the data loaders

            metadata = MetadataCatalog.get("__nonexist__")
        super().__init__(img_rgb, scale, font_size_scale)
        self.metadata = metadata
        self.cpu_device = torch.device("cpu")
        self._instance_mode = instance_mode

    # ---- predictions and annotations

    def draw_instance_predictions(self, predictions: Any, jittering: bool = True) -> VisImage:
        """Draw an `Instances` with any of pred_boxes, scores, pred_classes, pred_masks, pred_keypoints.

        Boxes that are zero (models that predict masks only fill them in so) are replaced by those of the masks.
        `jittering` False gives all instances of a class the same colour.
        """
        fields = {name: predictions.get(name) for name in predictions.get_fields()}
        classes = None if fields.get("pred_classes") is None else to_numpy(fields["pred_classes"]).astype(int).tolist()
        masks = None if fields.get("pred_masks") is None else self._convert_masks(fields["pred_masks"])
        boxes = None if fields.get("pred_boxes") is None else self._convert_boxes(fields["pred_boxes"])
        if masks is not None and boxes is not None:
            boxes = np.array([mask.bbox() if not box.any() else box for box, mask in zip(boxes, masks)])
        colors = self._instance_colors(classes if classes is not None else list(range(len(predictions))), jittering)
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._create_grayscale_image(self._union(masks)))
        alpha = {ColorMode.IMAGE: 0.5, ColorMode.SEGMENTATION: 0.8, ColorMode.IMAGE_BW: 0.3}[self._instance_mode]
        return self.overlay_instances(
            boxes=boxes, masks=masks, keypoints=fields.get("pred_keypoints"), assigned_colors=colors, alpha=alpha,
            labels=_create_text_labels(classes, fields.get("scores"), self._thing_names()),
        )  # fmt: skip

    def draw_sem_seg(self, sem_seg: Any, area_threshold: int | None = None, alpha: float = 0.8) -> VisImage:
        """Draw a (H, W) map of class numbers; numbers without a name (255, say) stay undrawn, if there are names.

        Of each class, parts of fewer than `area_threshold` pixels are left out.
        """
        return self._draw_regions(self._sem_seg_regions(to_numpy(sem_seg), alpha), area_threshold or 0)

    def draw_panoptic_seg(
        self, panoptic_seg: Any, segments_info: list[dict[str, Any]] | None, area_threshold: int | None = None,
        alpha: float = 0.7,
    ) -> VisImage:  # fmt: skip
        """Draw a panoptic result, stuff first.

        Args:
            panoptic_seg: (H, W) segment ids.
            segments_info: id, isthing, category_id and perhaps score of each segment; None: the ids are
                category * metadata.label_divisor + number, and -1 is nothing.
            area_threshold: parts of fewer pixels are left out.
            alpha: opacity of the colours.
        """
        regions = self._panoptic_regions(to_numpy(panoptic_seg), segments_info, alpha)
        return self._draw_regions(regions, area_threshold or 0)

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw the ground truth of one image in the standard dataset format, whatever kinds of it there are."""
        annotations = dic.get("annotations")
        if annotations:
            from detectron2.structures import BoxMode

            classes = [int(a["category_id"]) for a in annotations]
            masks = [a.get("segmentation") for a in annotations]
            boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations if "bbox" in a]
            labels = _create_text_labels(classes, None, self._thing_names(), [a.get("iscrowd", 0) for a in annotations])
            keypoints = [np.reshape(a["keypoints"], (-1, 3)) for a in annotations if "keypoints" in a]
            self.overlay_instances(
                labels=labels, assigned_colors=self._instance_colors(classes), alpha=0.5,
                boxes=np.array(boxes) if len(boxes) == len(annotations) else None,
                masks=None if any(mask is None for mask in masks) else masks,
                keypoints=np.array(keypoints) if len(keypoints) == len(annotations) else None,
            )  # fmt: skip
        if dic.get("sem_seg") is not None:
            self.draw_sem_seg(dic["sem_seg"], alpha=0.5)
        elif dic.get("sem_seg_file_name"):
            self.draw_sem_seg(np.asarray(Image.open(dic["sem_seg_file_name"])), alpha=0.5)
        if dic.get("pan_seg_file_name"):
            ids = rgb2id(np.asarray(Image.open(dic["pan_seg_file_name"]).convert("RGB")))
            infos = dic["segments_info"]
            thing_ids = set(getattr(self.metadata, "thing_dataset_id_to_contiguous_id", {}).values())
            infos = [{"isthing": info["category_id"] in thing_ids, **info} for info in infos]
            self.draw_panoptic_seg(ids, infos, alpha=0.5)
        return self.output

    def overlay_instances(
        self, *, boxes: Any = None, labels: Sequence[str] | None = None, masks: Any = None, keypoints: Any = None,
        assigned_colors: Sequence[Color] | None = None, alpha: float = 0.5,
    ) -> VisImage:  # fmt: skip
        """Draw N instances, the largest first; each of the arguments is None or has N entries.

        Labels stand inside the masks, or above the boxes where there are no masks; those of tiny objects beside them.
        """
        boxes = None if boxes is None else self._convert_boxes(boxes)
        masks = None if masks is None else self._convert_masks(masks)
        keypoints = None if keypoints is None else self._convert_keypoints(keypoints)
        given = {"boxes": boxes, "labels": labels, "masks": masks, "keypoints": keypoints, "colours": assigned_colors}
        counts = {name: len(value) for name, value in given.items() if value is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(f"overlay_instances needs as many entries of each kind, but got {counts}")
        count = next(iter(counts.values()), 0)
        colors = [parse_color(c) for c in assigned_colors] if assigned_colors is not None else self._palette(count)
        texts = labels if labels is not None else [None] * count

        for i in _largest_first(boxes) if masks is None and boxes is not None else range(count):
            if boxes is not None:
                # Next to a mask the box says little: it stays in the background.
                self._lines(self._outline(boxes[i]), colors[i], closed=True, alpha=1.0 if masks is None else 0.4)
            if keypoints is not None:
                self.draw_and_connect_keypoints(keypoints[i])
        if masks is not None:
            return self._draw_regions([Region(m, c, t, alpha) for m, c, t in zip(masks, colors, texts)], 0)
        if boxes is not None:
            for box, color, text in zip(boxes, colors, texts):
                if text:
                    self._draw_label(text, color, box=self._outline(box))
        return self.output

    def draw_and_connect_keypoints(self, keypoints: Any) -> VisImage:
        """Draw (K, 3) x, y, score of one instance, joined as metadata.keypoint_connection_rules say."""
        names = getattr(self.metadata, "keypoint_names", None) or range(len(keypoints))
        seen = {name: point[:2] for name, point in zip(names, to_numpy(keypoints)) if point[2] > _KEYPOINT_THRESHOLD}
        for start, end, color in getattr(self.metadata, "keypoint_connection_rules", None) or []:
            if start in seen and end in seen:
                (x0, y0), (x1, y1) = seen[start], seen[end]
                self.draw_line([x0, x1], [y0, y1], color=[c / 255 for c in color])
        for point in seen.values():
            self.draw_circle(point, color=(1.0, 0.0, 0.0))
        return self.output

    # ---- what subclasses use too

    def _jitter(self, color: Color, index: int = 1) -> RGB:
        """The shade of `color` for the object number `index` of its class; number 0 has the colour itself."""
        hue, saturation, value = colorsys.rgb_to_hsv(*parse_color(color))
        if index == 0:
            return colorsys.hsv_to_rgb(hue, saturation, value)
        # Multiples of irrational numbers: any few objects in a row differ well, and no two are quite the same.
        hue += 0.16 * ((0.618034 * index) % 1 - 0.5)
        saturation = min(1.0, saturation * (0.7 + 0.5 * ((0.414214 * index) % 1)))
        value = min(1.0, max(0.3, value * (0.7 + 0.5 * ((0.732051 * index) % 1))))
        return colorsys.hsv_to_rgb(hue % 1, saturation, value)

    def _create_grayscale_image(self, mask: Any = None) -> np.ndarray:
        """The image in grey, but for the pixels within `mask` (H, W), which keep their colours."""
        gray = cv2.cvtColor(cv2.cvtColor(self.img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if mask is not None:
            inside = binary(to_numpy(mask)) > 0
            gray[inside] = self.img[inside]
        return gray

    def _union(self, masks: list[GenericMask] | None) -> np.ndarray:
        """(H, W) uint8, 1 where any of the masks is."""
        union = np.zeros((self.output.height, self.output.width), np.uint8)
        for mask in masks or []:
            np.bitwise_or(union, mask.mask, out=union)
        return union

    def _convert_boxes(self, boxes: Any) -> np.ndarray:
        """(N, 4) of Boxes, an array or a tensor; (N, 5) of rotated ones."""
        return np.asarray(to_numpy(getattr(boxes, "tensor", boxes)), dtype=np.float64)

    def _convert_masks(self, masks_or_polygons: Any) -> list[GenericMask]:
        """Masks of BitMasks, PolygonMasks, a (N, H, W) array or tensor, or a list of anything GenericMask takes."""
        masks = getattr(masks_or_polygons, "polygons", None)
        if masks is None:
            masks = getattr(masks_or_polygons, "tensor", masks_or_polygons)
        if isinstance(masks, torch.Tensor):
            masks = to_numpy(masks)
        size = self.output.height, self.output.width
        return [mask if isinstance(mask, GenericMask) else GenericMask(mask, *size) for mask in masks]

    def _convert_keypoints(self, keypoints: Any) -> np.ndarray:
        return to_numpy(getattr(keypoints, "tensor", keypoints))

    # ---- names and colours

    def _thing_names(self) -> list[str]:
        """Names by the numbers that things have in predictions.

        Some data sets number things among all classes (`stuff_classes` then names all) and list fewer `thing_classes`.
        """
        things = list(getattr(self.metadata, "thing_classes", None) or [])
        everything = list(getattr(self.metadata, "stuff_classes", None) or [])
        return everything if self._things_are_numbered_among_all() else things + everything[len(things) :]

    def _things_are_numbered_among_all(self) -> bool:
        numbers = (getattr(self.metadata, "thing_dataset_id_to_contiguous_id", None) or {}).values()
        things = getattr(self.metadata, "thing_classes", None) or []
        everything = getattr(self.metadata, "stuff_classes", None) or []
        return max(numbers, default=-1) >= len(things) and len(everything) > max(numbers, default=-1)

    def _class_color(self, category: int, isthing: bool) -> RGB:
        """The colour of the metadata, or one of the palette."""
        things = getattr(self.metadata, "thing_colors", None) or []
        everything = getattr(self.metadata, "stuff_colors", None) or []
        if isthing and not self._things_are_numbered_among_all() and category < len(things):
            red, green, blue = things[category]
        elif category < len(everything):
            red, green, blue = everything[category]
        else:
            red, green, blue = colormap(rgb=True)[category % NUM_COLORS].tolist()
        return red / 255, green / 255, blue / 255

    def _instance_colors(self, classes: Sequence[int], jittering: bool = True) -> list[RGB]:
        """A shade of its class's colour for each instance."""
        seen: Counter[int] = Counter()
        colors = []
        for category in classes:
            colors.append(self._jitter(self._class_color(category, isthing=True), seen[category] if jittering else 0))
            seen[category] += 1
        return colors

    # ---- regions: masks with their labels

    def _sem_seg_regions(self, labels: np.ndarray, alpha: float) -> list[Region]:
        """A region of each class of a (H, W) map."""
        names = getattr(self.metadata, "stuff_classes", None) or []
        classes = [int(c) for c in np.unique(labels) if c >= 0 and (not names or c < len(names))]
        regions = []
        for category in classes:
            mask = GenericMask(labels == category, self.output.height, self.output.width)
            regions.append(Region(mask, self._class_color(category, False), _name(category, names), alpha, _OFF_WHITE))
        return regions

    def _panoptic_regions(
        self, ids: np.ndarray, segments_info: list[dict[str, Any]] | None, alpha: float,
        thing_colors: list[RGB] | None = None,
    ) -> list[Region]:  # fmt: skip
        """A region of each segment, stuff before things; `thing_colors` are in the order of the things' entries."""
        segments_info = self._decode_segments(ids) if segments_info is None else segments_info
        things = [info for info in segments_info if info["isthing"]]
        stuff = [info for info in segments_info if not info["isthing"]]
        if thing_colors is None:
            thing_colors = self._instance_colors([info["category_id"] for info in things])
        colors = [self._class_color(info["category_id"], False) for info in stuff] + thing_colors
        regions = []
        for info, color in zip(stuff + things, colors):
            names = self._thing_names() if info["isthing"] else getattr(self.metadata, "stuff_classes", None) or []
            text = _name(info["category_id"], names)
            text += f" {info['score']:.0%}" if info.get("score") is not None else ""
            mask = GenericMask(ids == info["id"], self.output.height, self.output.width)
            regions.append(Region(mask, color, text, alpha, None if info["isthing"] else _OFF_WHITE))
        return regions

    def _decode_segments(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Read category and kind off ids that are category * label_divisor + number."""
        divisor = self.metadata.label_divisor
        things = set(self.metadata.thing_dataset_id_to_contiguous_id.values())
        categories = {int(i): int(i) // divisor for i in np.unique(ids) if i >= 0}
        return [{"id": i, "category_id": c, "isthing": c in things} for i, c in categories.items()]


def _create_text_labels(
    classes: Sequence[int] | None, scores: Any, class_names: Sequence[str] | None, is_crowd: Sequence[int] | None = None
) -> list[str] | None:
    """Labels "name 50%", "|crowd" after it for crowds; numbers for classes without a name, None without input."""
    labels = None
    if classes is not None:
        labels = [_name(int(category), class_names or []) for category in classes]
    if scores is not None:
        percents = [f"{float(score) * 100:.0f}%" for score in scores]
        labels = percents if labels is None else [f"{label} {percent}" for label, percent in zip(labels, percents)]
    if labels is not None and is_crowd is not None:
        labels = [label + ("|crowd" if crowd else "") for label, crowd in zip(labels, is_crowd)]
    return labels


def _name(category: int, names: Sequence[str]) -> str:
    return names[category] if 0 <= category < len(names) else str(category)


def _largest_first(boxes: np.ndarray) -> list[int]:
    sides = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]
    return np.argsort(-sides.prod(1), kind="stable").tolist()
