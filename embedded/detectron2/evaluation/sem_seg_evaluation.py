"""Semantic segmentation: intersection over union, from one streaming confusion matrix.

N classes; row and column N stand for "ignored" and "nothing".
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.evaluation.rle import encode_labels, run_starts
from detectron2.evaluation.sanity import log_coverage, warn_at_extremes
from detectron2.evaluation.spool import Spool, joined, write_json_list
from detectron2.utils.comm import gather, is_main_process, synchronize
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table


def load_image_into_numpy_array(filename: str, copy: bool = False, dtype: Any = None) -> np.ndarray:
    """Read an image file as an array, values as they are."""
    with PathManager.open(filename, "rb") as file, Image.open(file) as image:
        return np.array(image, dtype=dtype, copy=True if copy else None)


class SemSegEvaluator(DatasetEvaluator):
    """mIoU, pixel and class accuracies of a data set registered with `sem_seg_file_name`.

    Args:
        dataset_name: its metadata has stuff_classes and ignore_label, and stuff_dataset_id_to_contiguous_id where the
            ids to write to sem_seg_predictions.json are not 0..N-1.
        distributed: add up the matrices of all processes.
        output_dir: where to write predictions and results, if anywhere.
        sem_seg_loading_fn: from a file name to (H, W) labels; another than the default is called with `dtype=int`.
        num_classes, ignore_label: deprecated, they come from the metadata.
        boundary_iou: also measure along the boundaries only (Cheng et al., 2021): slow.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
        num_classes: int | None = None,
        ignore_label: int | None = None,
        boundary_iou: bool = False,
    ) -> None:
        self._logger = logging.getLogger(__name__)
        meta = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self.sem_seg_loading_fn = sem_seg_loading_fn
        # Our own leaves labels in the small type of the file.
        self._loading_options: dict[str, Any] = {"dtype": int}
        if sem_seg_loading_fn is load_image_into_numpy_array:
            self._loading_options = {"copy": True}  # PyTorch wants arrays that can be written to
        self._class_names = list(meta.stuff_classes)
        self._num_classes = len(self._class_names)
        self._ignore_label = meta.ignore_label
        for name, given, own in (
            ("num_classes", num_classes, self._num_classes),
            ("ignore_label", ignore_label, self._ignore_label),
        ):
            if given is not None:
                self._logger.warning("SemSegEvaluator(%s=...) is deprecated: it comes from the metadata.", name)
                assert given == own, f"{name} is {given}, but the metadata of {dataset_name} says {own}"
        to_contiguous = meta.get("stuff_dataset_id_to_contiguous_id") or {}
        self._contiguous_id_to_dataset_id = {contiguous: dataset for dataset, contiguous in to_contiguous.items()}
        self._boundary_iou = boundary_iou
        self.input_file_to_gt_file = {
            record["file_name"]: record["sem_seg_file_name"] for record in DatasetCatalog.get(dataset_name)
        }
        self.reset()

    def reset(self) -> None:
        size = self._num_classes + 1
        self._conf_matrix = np.zeros((size, size), dtype=np.int64)  # [predicted, true]
        self._boundary_counts = np.zeros((2, self._num_classes), dtype=np.int64)  # intersection, union
        self._predictions = Spool()  # the entries of each image

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Args:
            inputs: with `file_name`.
            outputs: with `sem_seg`, (N, H, W) scores or an (H, W) integer map of labels, in which `ignore_label` means
                "nothing predicted" and counts as a miss.

        Raises:
            ValueError: sizes differ, or a label is no class.
        """
        for record, output in zip(inputs, outputs):
            file_name = record["file_name"]
            pred = self._label_map(output["sem_seg"], f"the prediction for {file_name}")
            gt_file = self.input_file_to_gt_file[file_name]
            gt = self._label_map(torch.as_tensor(self.sem_seg_loading_fn(gt_file, **self._loading_options)), gt_file)
            if gt.shape != pred.shape:
                raise ValueError(f"{gt_file} is {gt.shape}, the prediction {pred.shape}; resize it to the ground truth")
            self._count(pred, gt, f"the prediction for {file_name}", gt_file)
            if self._boundary_iou:
                self._add_boundaries(pred, gt)
            if self._output_dir:
                self._predictions.append(self.encode_json_sem_seg(pred, file_name))

    def _label_map(self, sem_seg: torch.Tensor, what: str) -> np.ndarray:
        """Scores or labels -> (H, W) integers."""
        labels = sem_seg.argmax(dim=0) if sem_seg.dim() == 3 else sem_seg
        if labels.is_floating_point() or labels.dim() != 2:
            raise ValueError(
                f"{what}: expected ({self._num_classes}, H, W) scores or (H, W) integer labels, "
                f"got {tuple(sem_seg.shape)} {sem_seg.dtype}"
            )
        return labels.cpu().numpy()

    def _count(self, pred: np.ndarray, gt: np.ndarray, pred_name: str, gt_name: str) -> None:
        """Add the pixels of each pair of classes. Most pixels have the labels of the one before: runs are counted."""
        starts = run_starts(pred, gt)
        predicted, true = (
            self._classes(labels.ravel()[starts], name) for labels, name in ((pred, pred_name), (gt, gt_name))
        )
        size = self._num_classes + 1
        pixels = np.diff(starts, append=pred.size)
        counts = np.bincount(size * predicted + true, weights=pixels, minlength=size * size)
        self._conf_matrix += counts.astype(np.int64).reshape(size, size)

    def _classes(self, labels: np.ndarray, what: str) -> np.ndarray:
        """Labels -> int64 in 0..N, where N is "ignored"."""
        ids = labels.astype(np.int64)
        ignored = ids == self._ignore_label
        ids[ignored] = self._num_classes
        strange = ids[(ids.view(np.uint64) >= self._num_classes) & ~ignored]  # unsigned, a negative id is large
        if strange.size:
            raise ValueError(
                f"{what} has the labels {np.unique(strange)[:10].tolist()}; {self._dataset_name} has the classes 0 to "
                f"{self._num_classes - 1} and ignores {self._ignore_label}"
            )
        return ids

    def _add_boundaries(self, pred: np.ndarray, gt: np.ndarray) -> None:
        """Count, for each class, the pixels in both boundary bands and in either."""
        seen = gt != self._ignore_label
        for label in np.union1d(np.unique(pred), np.unique(gt)):
            if label != self._ignore_label:
                bands = mask_boundary(pred == label), mask_boundary(gt == label)
                self._boundary_counts[0, label] += (bands[0] & bands[1] & seen).sum()
                self._boundary_counts[1, label] += ((bands[0] | bands[1]) & seen).sum()

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict[str, Any]]:
        """One entry for each class that occurs: file_name, category_id (the data set's own), segmentation (RLE)."""
        entries = []
        for label, rle in encode_labels(sem_seg).items():
            if label != self._ignore_label:
                category = self._contiguous_id_to_dataset_id.get(label, label)
                entries.append({"file_name": input_file_name, "category_id": category, "segmentation": rle})
        return entries

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns:
        {"sem_seg": {mIoU, fwIoU, IoU-<class>..., mACC, pACC, ACC-<class>...}}, in percent; None off the main process.
        """
        if self._distributed:
            synchronize()
            gathered = gather((self._conf_matrix, self._boundary_counts, self._predictions), dst=0)
            if not is_main_process():
                return None
            matrices, boundaries, predictions = zip(*gathered)
            self._conf_matrix = np.sum(matrices, axis=0)
            self._boundary_counts = np.sum(boundaries, axis=0)
            self._predictions = joined(predictions)

        metrics = self._metrics()
        truth, predicted = self._conf_matrix.sum(axis=0), self._conf_matrix[:, :-1].sum(axis=1)
        log_coverage(
            self._logger,
            "sem_seg",
            self._num_classes,
            np.flatnonzero(truth[:-1]).tolist(),
            np.flatnonzero(predicted[:-1]).tolist(),
            truth[-1] / max(truth.sum(), 1),
        )
        main = {name: value for name, value in metrics.items() if "-" not in name}
        self._logger.info("Evaluation results for sem_seg:\n%s", create_small_table(main))
        warn_at_extremes(self._logger, "sem_seg", metrics, "mIoU")
        results = {"sem_seg": metrics}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_predictions.json"), "w") as file:
                write_json_list(self._predictions, file)
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_evaluation.pth"), "wb") as file:
                torch.save(results, file)
        return results

    def _metrics(self) -> dict[str, float]:
        """The numbers, from the matrix. Of a class without ground truth there is no IoU (NaN), and it is in no mean."""
        counts = self._conf_matrix[:, :-1].astype(float)  # without the pixels that are to be ignored
        correct = counts.diagonal()
        truth = counts.sum(axis=0)
        union = truth + counts[:-1].sum(axis=1) - correct
        present = truth > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where(present, 100 * correct / union, np.nan)
            accuracy = np.where(present, 100 * correct / truth, np.nan)
            frequency = truth / truth.sum()
            pixel_accuracy = 100 * correct.sum() / truth.sum()

        names = self._class_names
        anything = present.any()
        metrics = {"mIoU": iou[present].mean() if anything else np.nan}
        metrics["fwIoU"] = (iou * frequency)[present].sum() if anything else np.nan
        metrics.update({f"IoU-{name}": value for name, value in zip(names, iou)})
        if self._boundary_iou:
            inside, either = self._boundary_counts
            boundary = np.where(present & (either > 0), 100 * inside / np.maximum(either, 1), np.nan)
            metrics.update({f"BoundaryIoU-{name}": value for name, value in zip(names, boundary)})
            metrics.update({f"min(IoU, B-Iou)-{n}": v for n, v in zip(names, np.minimum(iou, boundary))})
        metrics["mACC"] = accuracy[present].mean() if anything else np.nan
        metrics["pACC"] = pixel_accuracy
        metrics.update({f"ACC-{name}": value for name, value in zip(names, accuracy)})
        return {name: float(value) for name, value in metrics.items()}


def mask_boundary(mask: np.ndarray, dilation_ratio: float = 0.02) -> np.ndarray:
    """The pixels of a mask that are near its outside (or the image border).

    Args:
        mask: (H, W) bool.
        dilation_ratio: how near, relative to the image's diagonal; at least one pixel.
    """
    import cv2  # an option few use

    width = max(1, round(dilation_ratio * float(np.hypot(*mask.shape))))
    padded = np.pad(mask.astype(np.uint8), 1)
    core = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & ~core.astype(bool)
