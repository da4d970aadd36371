"""COCO's average precision, image by image: of each detection only its score and its matches are kept.

pycocotools and faster-coco-eval hold every mask, and Python objects for every detection, until the end. Here an image
is matched and forgotten, which leaves 24 bytes for each detection, and categories and thresholds are computed together.
The rules and the numbers are pycocotools' own, and so is the summary.

A area ranges, T IoU thresholds, R recall thresholds, D detections and G true objects of one category in an image.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Entry = dict[str, Any]  # a detection in COCO's format of results


class Matched(NamedTuple):
    """Detections, those of one image or of all; flags are packed bits of A T booleans."""

    category: np.ndarray  # (D) index in params.catIds
    score: np.ndarray  # (D)
    rank: np.ndarray  # (D) among those of its image and category, best first
    hit: np.ndarray  # (D, bytes) matches a true object
    ignored: np.ndarray  # (D, bytes) is neither right nor wrong


class StreamedCOCOeval(COCOeval):
    """pycocotools' COCOeval for masks and boxes ("segm", "bbox"), which reads detections one image at a time.

    Args:
        coco_gt: the ground truth.
        detections: by the image's id; each with category_id, score and segmentation (RLE) or bbox.

    Raises:
        AssertionError: there are detections for images that are not in the ground truth.
    """

    def __init__(self, coco_gt: COCO, detections: Mapping[Any, Sequence[Entry]], iou_type: str) -> None:
        super().__init__(coco_gt, None, iou_type)
        strange = [image for image in detections if image not in coco_gt.imgs]
        assert not strange, f"{len(strange)} images with results are not in the ground truth: {strange[:5]}"
        self._detections = detections

    def evaluate(self) -> None:
        """Match the detections of every image of params.imgIds."""
        params = self.params
        params.imgIds = np.unique(params.imgIds).tolist()
        params.catIds = np.unique(params.catIds).tolist()
        params.maxDets = sorted(params.maxDets)
        number_of = {category: index for index, category in enumerate(params.catIds)}
        self._true_count = np.zeros((len(number_of), len(params.areaRng)), dtype=np.int64)
        images = [self._match_image(image, number_of) for image in params.imgIds]
        flag_bytes = -(-len(params.areaRng) * len(params.iouThrs) // 8)
        nothing = [np.zeros(0, np.int32), np.zeros(0), np.zeros(0, np.int32)]
        nothing += [np.zeros((0, flag_bytes), np.uint8)] * 2
        columns = zip(*[image for image in images if image is not None])
        self._matched = Matched(*([np.concatenate(column) for column in columns] or nothing))

    def _match_image(self, image: Any, number_of: Mapping[Any, int]) -> Matched | None:
        params = self.params
        truths: dict[int, list[Entry]] = {}
        for truth in self.cocoGt.imgToAnns.get(image, ()):
            if truth["category_id"] in number_of:
                truths.setdefault(number_of[truth["category_id"]], []).append(truth)
        ignore = {category: self._ignored_truths(some) for category, some in truths.items()}
        for category, flags in ignore.items():
            self._true_count[category] += (~flags).sum(1)

        found = [entry for entry in self._detections.get(image, ()) if entry["category_id"] in number_of]
        if not found:
            return None
        label = np.array([number_of[entry["category_id"]] for entry in found], dtype=np.int32)
        score = np.array([entry["score"] for entry in found], dtype=np.float64)
        order = np.lexsort((-score, label))  # stable: equal scores stay in the order of the results
        label, score = label[order], score[order]
        first = np.searchsorted(label, label)
        rank = (np.arange(len(order)) - first).astype(np.int32)
        kept = rank < params.maxDets[-1]
        label, score, rank, order = label[kept], score[kept], rank[kept], order[kept]
        found = [found[i] for i in order]

        area = self._areas(found)
        low, high = np.array(params.areaRng, dtype=np.float64).T[:, :, None]
        hit = np.zeros((len(found), len(params.areaRng), len(params.iouThrs)), dtype=bool)
        ignored = hit | ((area < low) | (area > high)).T[:, :, None]  # (D, A, T)
        for present in truths.keys() & set(label.tolist()):
            start, stop = np.searchsorted(label, [present, present + 1])
            ious, crowd = self._ious(image, found[start:stop], truths[present])
            match = _match(ious, ignore[present], crowd, np.minimum(params.iouThrs, 1 - 1e-10))
            for i, (where, of_ignored) in match.items():
                hit[start + i] = where
                ignored[start + i] = np.where(where, of_ignored, ignored[start + i])
        packed = (np.packbits(flags.reshape(len(found), -1), axis=1) for flags in (hit, ignored))
        return Matched(label, score, rank, *packed)

    def _ignored_truths(self, truths: Sequence[Entry]) -> np.ndarray:
        """(A, G) bool: crowds, and those outside of an area range."""
        area = np.array([truth["area"] for truth in truths], dtype=np.float64)
        crowd = np.array([bool(truth.get("iscrowd", 0)) for truth in truths])
        low, high = np.array(self.params.areaRng, dtype=np.float64).T[:, :, None]
        return crowd | (area < low) | (area > high)

    def _areas(self, found: Sequence[Entry]) -> np.ndarray:
        if self.params.iouType == "segm":
            if any("segmentation" not in entry for entry in found):
                raise ValueError("the task segm needs pred_masks in the predictions; there are instances without")
            return mask_util.area([entry["segmentation"] for entry in found]).astype(np.float64)
        return np.array([entry["bbox"][2] * entry["bbox"][3] for entry in found], dtype=np.float64)

    def _ious(self, image: Any, found: Sequence[Entry], truths: Sequence[Entry]) -> tuple[np.ndarray, np.ndarray]:
        """-> (D, G), and which truths are crowds (G)."""
        crowd = [int(truth.get("iscrowd", 0)) for truth in truths]
        if self.params.iouType == "segm":
            shapes = [entry["segmentation"] for entry in found], [self.cocoGt.annToRLE(truth) for truth in truths]
        else:
            shapes = [entry["bbox"] for entry in found], [truth["bbox"] for truth in truths]
        return mask_util.iou(*shapes, crowd), np.array(crowd, dtype=bool)

    def accumulate(self, p: Any = None) -> None:
        """Precision and recall from the matches of all images: fills `eval` as pycocotools does."""
        params = p or self.params
        areas, thresholds = len(params.areaRng), len(params.iouThrs)
        shape = (thresholds, len(params.recThrs), len(params.catIds), areas, len(params.maxDets))
        precision, scores = -np.ones(shape), -np.ones(shape)
        recall = -np.ones((thresholds, *shape[2:]))
        matched = self._matched
        order = np.lexsort((-matched.score, matched.category))
        bounds = np.searchsorted(matched.category[order], np.arange(len(params.catIds) + 1))
        for category, true_count in enumerate(self._true_count):
            rows = order[bounds[category] : bounds[category + 1]]
            for number, limit in enumerate(params.maxDets):
                counted = rows[matched.rank[rows] < limit]
                flags = matched.hit[counted], matched.ignored[counted]
                for area in np.flatnonzero(true_count).tolist():
                    curve = _curve(*flags, area * thresholds, thresholds, true_count[area], params.recThrs)
                    recall[:, category, area, number], reached, heights = curve
                    with_end = np.append(matched.score[counted], 0.0)
                    precision[:, :, category, area, number] = heights
                    scores[:, :, category, area, number] = with_end[reached]
        self.eval = {"params": params, "counts": shape, "precision": precision, "recall": recall, "scores": scores}


def _match(
    ious: np.ndarray, ignored: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Give each detection, best first, the free true object that it overlaps most: a counted one, if there is any.

    Args:
        ious: (D, G), detections by descending score.
        ignored: (A, G) true objects that do not count.
        crowd: (G), which may be matched many times.
        thresholds: (T) an IoU is at least so large; ascending.

    Returns:
        for the detections that match anything: (A, T) where they do, and (A, T) where that object is ignored.
    """
    free = np.ones((len(ignored), len(thresholds), len(crowd)), dtype=bool)
    matches = {}
    for detection in np.flatnonzero(ious.max(1) >= thresholds[0]):
        near = np.flatnonzero(ious[detection] >= thresholds[0])[::-1]  # of equal overlaps the last one wins
        possible = free[..., near] & (ious[detection, near] >= thresholds[:, None])
        if len(near) > 1:
            preferred = possible & ~ignored[:, None, near]
            possible = np.where(preferred.any(-1, keepdims=True), preferred, possible)
            best = np.where(possible, ious[detection, near], -1.0).argmax(-1)
            possible &= best[..., None] == np.arange(len(near))
        matches[int(detection)] = possible.any(-1), (possible & ignored[:, None, near]).any(-1)
        free[..., near] &= ~possible | crowd[near]
    return matches


def _curve(
    hit: np.ndarray, ignored: np.ndarray, first: int, count: int, true_count: int, recall_thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The precision-recall curve of one category and area range.

    Args:
        hit, ignored: (D, bytes) as in `Matched`, by descending score.
        first, count: the flags of this area range, one for each of T IoU thresholds.

    Returns:
        recall at the end (T); the detection at which each recall is reached (T, R), D where it never is; and the
        precision there (T, R), or the best one at a higher recall.
    """
    right, ignore = (_flags(packed, first, count) for packed in (hit, ignored))
    wrong = ~(right | ignore)
    right &= ~ignore
    length = right.shape[1]
    true_positives = right.cumsum(1)
    precision = np.zeros((count, length + 1))  # and 0 after the end
    np.divide(true_positives, true_positives + wrong.cumsum(1) + np.spacing(1), out=precision[:, :length])
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # How many true positives each recall takes, and where the first of that many is.
    needed = np.searchsorted(np.arange(true_count + 1) / true_count, recall_thresholds)
    place = np.full((count, true_count + 1), length)
    levels, places = np.nonzero(right)
    place[levels, true_positives[levels, places]] = places
    place[:, 0] = 0
    reached = place[:, needed]
    recall = true_positives[:, -1] / true_count if length else np.zeros(count)
    return recall, reached, np.take_along_axis(envelope, reached, 1)


def _flags(packed: np.ndarray, first: int, count: int) -> np.ndarray:
    """(D, bytes) -> flags `first` ... `first + count - 1` of each, (count, D) bool."""
    start = first // 8
    bits = np.unpackbits(packed[:, start : -(-(first + count) // 8)], axis=1)
    return np.ascontiguousarray(bits[:, first - 8 * start :][:, :count].T).view(bool)
