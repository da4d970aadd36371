"""Pictures of the frames of a video, in which an object keeps its colour for as long as it is seen."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from detectron2.structures import Boxes, pairwise_iou

from ._canvas import RGB
from ._masks import GenericMask, to_numpy
from .visualizer import ColorMode, VisImage, Visualizer, _create_text_labels

__all__ = ["VideoVisualizer"]

_MASK_IOU = 0.5
_BOX_IOU = 0.6
_PATIENCE = 8  # frames for which an object may be out of sight and still get its colour back
_SIDE = 192  # masks are compared at this size of their longer side: the memory of a track is small and constant


class _Track:
    """An object seen before: its class, which of the class it is, and where it was last."""

    def __init__(self, category: int, number: int) -> None:
        self.category, self.number = category, number
        self.unseen = 0
        self.shape = np.empty(0)


class VideoVisualizer:
    """Draws frame after frame; objects are recognised by how much they overlap with those of the frames before.

    Args:
        metadata: class names and colours.
        instance_mode: ColorMode.IMAGE, or IMAGE_BW for instances over a grey frame.
    """

    def __init__(self, metadata: Any, instance_mode: ColorMode = ColorMode.IMAGE) -> None:
        assert instance_mode in (ColorMode.IMAGE, ColorMode.IMAGE_BW), f"videos have no mode {instance_mode}"
        self.metadata = metadata
        self._instance_mode = instance_mode
        self._tracks: list[_Track] = []

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Any) -> VisImage:
        """Draw an `Instances` with pred_classes and any of pred_masks, pred_boxes, scores on a (H, W, 3) RGB frame."""
        visualizer = Visualizer(frame, self.metadata, instance_mode=self._instance_mode)
        fields = predictions.get_fields()
        classes = (
            to_numpy(predictions.pred_classes).astype(int).tolist()
            if "pred_classes" in fields
            else [0] * len(predictions)
        )
        masks = visualizer._convert_masks(predictions.pred_masks) if "pred_masks" in fields else None
        boxes = visualizer._convert_boxes(predictions.pred_boxes) if "pred_boxes" in fields else None
        if masks is not None:
            shapes: np.ndarray | None = _shrink(masks)
            enough = _MASK_IOU
            boxes = np.array([mask.bbox() for mask in masks]) if boxes is not None and not boxes.any() else boxes
        else:
            shapes, enough = boxes, _BOX_IOU
        colors = self._recognise(visualizer, classes, shapes, enough)
        if self._instance_mode == ColorMode.IMAGE_BW:
            visualizer.output.reset_image(visualizer._create_grayscale_image(visualizer._union(masks)))
        names = visualizer._thing_names()
        labels = _create_text_labels(classes if "pred_classes" in fields else None, fields.get("scores"), names)
        alpha = 0.3 if self._instance_mode == ColorMode.IMAGE_BW else 0.5
        return visualizer.overlay_instances(
            boxes=boxes if masks is None else None, masks=masks, labels=labels, assigned_colors=colors, alpha=alpha
        )

    def draw_sem_seg(self, frame: np.ndarray, sem_seg: Any, area_threshold: int | None = None) -> VisImage:
        """Draw a (H, W) map of class numbers; classes have fixed colours."""
        return Visualizer(frame, self.metadata).draw_sem_seg(sem_seg, area_threshold)

    def draw_panoptic_seg_predictions(
        self, frame: np.ndarray, panoptic_seg: Any, segments_info: list[dict[str, Any]],
        area_threshold: int | None = None, alpha: float = 0.5,
    ) -> VisImage:  # fmt: skip
        """Draw a panoptic result: segment ids (H, W), and id, isthing, category_id of each segment."""
        visualizer = Visualizer(frame, self.metadata)
        ids = to_numpy(panoptic_seg)
        things = [info for info in segments_info if info["isthing"]]
        masks = [GenericMask(ids == info["id"], *ids.shape) for info in things]
        colors = self._recognise(visualizer, [info["category_id"] for info in things], _shrink(masks), _MASK_IOU)
        regions = visualizer._panoptic_regions(ids, segments_info, alpha, colors)
        return visualizer._draw_regions(regions, area_threshold or 0)

    def _recognise(
        self, visualizer: Visualizer, classes: Sequence[int], shapes: np.ndarray | None, enough: float
    ) -> list[RGB]:
        """Find the track of each object, or start one; tracks unseen for too long are forgotten.

        Args:
            visualizer: turns tracks into colours.
            classes: class of each of N objects.
            shapes: (N, P) masks in a row or (N, 4) boxes; None: the model tells neither, so nothing is recognised.
            enough: the overlap from which on it is the same object.

        Returns:
            N colours.
        """
        found: list[_Track | None] = [None] * len(classes)
        if shapes is not None and len(shapes):
            for i, match in self._match(classes, shapes, enough):
                found[i] = match
        for track in self._tracks:
            track.unseen += 1
        self._tracks = [track for track in self._tracks if track.unseen <= _PATIENCE]
        for i, category in enumerate(classes):
            track = found[i] or _Track(category, self._free_number(category))
            if found[i] is None:
                found[i] = track
                self._tracks.append(track)
            track.unseen = 0
            if shapes is not None:
                track.shape = shapes[i]
        return [visualizer._jitter(visualizer._class_color(t.category, isthing=True), t.number) for t in found]

    def _match(self, classes: Sequence[int], shapes: np.ndarray, enough: float) -> list[tuple[int, _Track]]:
        """Pair objects and tracks of the same class, those that overlap most first."""
        tracks = [track for track in self._tracks if track.shape.shape == shapes[0].shape]
        if not tracks:
            return []
        overlap = (_mask_iou if enough == _MASK_IOU else _box_iou)(shapes, np.stack([track.shape for track in tracks]))
        overlap[np.array(classes)[:, None] != np.array([track.category for track in tracks])] = 0
        pairs = []
        for _ in range(min(overlap.shape)):
            i, j = np.unravel_index(overlap.argmax(), overlap.shape)
            if overlap[i, j] <= enough:
                break
            pairs.append((int(i), tracks[j]))
            overlap[i] = overlap[:, j] = 0
        return pairs

    def _free_number(self, category: int) -> int:
        """The smallest number that no object of the class has."""
        used = {track.number for track in self._tracks if track.category == category}
        return next(number for number in range(len(used) + 1) if number not in used)


def _shrink(masks: list[GenericMask]) -> np.ndarray:
    """(N, P) float32 0/1: masks at a small size, in a row each; a mask too thin for it keeps the pixels it touches."""
    rows = []
    for mask in masks:
        shrink = min(1.0, _SIDE / max(mask.height, mask.width))
        size = max(1, round(mask.width * shrink)), max(1, round(mask.height * shrink))
        small = cv2.resize(mask.mask * np.uint8(255), size, interpolation=cv2.INTER_AREA)
        rows.append((small > (127 if small.max() > 127 else 0)).ravel())
    return np.array(rows, dtype=np.float32)


def _mask_iou(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) IoU of (N, P) and (M, P) masks; 0 of two empty ones."""
    common = masks @ others.T
    union = masks.sum(1)[:, None] + others.sum(1) - common
    return common / np.maximum(union, 1)


def _box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) IoU of (N, 4) and (M, 4) boxes."""
    return pairwise_iou(Boxes(boxes), Boxes(others)).numpy()
