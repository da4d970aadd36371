"""Panoptic Quality, image by image: only sums are kept, whatever the size of the data set."""

import json
import logging
import os
from typing import Any

import numpy as np
from panopticapi.evaluation import PQStat, pq_of_image, read_ids, summarize

from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.evaluation.sanity import log_coverage, warn_at_extremes
from detectron2.evaluation.spool import Spool, joined, write_json_list
from detectron2.utils.comm import gather, is_main_process, synchronize
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

_COLUMNS = {"All": "", "Things": "_th", "Stuff": "_st"}


class COCOPanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ against ground truth in COCO's panoptic format.

    Args:
        dataset_name: its metadata has panoptic_json, panoptic_root, thing_ and stuff_dataset_id_to_contiguous_id, and
            label_divisor for models that give no list of segments.
        output_dir: where to write predictions.json (the list of segments), if anywhere.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        self._logger = logging.getLogger(__name__)
        self._metadata = MetadataCatalog.get(dataset_name)
        self._output_dir = output_dir
        self._thing_to_dataset = _inverse(self._metadata.thing_dataset_id_to_contiguous_id)
        self._stuff_to_dataset = _inverse(self._metadata.stuff_dataset_id_to_contiguous_id)
        with PathManager.open(self._metadata.panoptic_json) as file:
            self._truth = json.load(file)
        if "annotations" not in self._truth:
            raise ValueError(f"{self._metadata.panoptic_json} has no annotations to evaluate on")
        self._categories = {category["id"]: category for category in self._truth["categories"]}
        self._truth_of_image = {ann["image_id"]: ann for ann in self._truth["annotations"]}
        self.reset()

    def reset(self) -> None:
        self._stat = PQStat()
        self._predictions = Spool()
        self._predicted: set[Any] = set()  # images and, below, categories
        self._predicted_categories: set[int] = set()
        self._void_pixels = self._pixels = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Args:
            inputs: with `file_name` and `image_id`.
            outputs: with `panoptic_seg`: (H, W) segment ids, and for each segment its id, category_id and isthing. A
                segment without isthing has a category id of the data set; instead of the list there may be None, where
                ids are class * label_divisor + instance and -1 is void.

        Raises:
            KeyError, ValueError: ids or sizes that do not fit, see `panopticapi.evaluation.pq_of_image`.
        """
        for record, output in zip(inputs, outputs):
            segment_ids, segments = output["panoptic_seg"]
            ids = segment_ids.cpu().numpy()
            if segments is None:
                segments = self._segments_from_divisor(ids)
                ids = ids + 1  # void becomes 0
            segments = [self._with_dataset_category(segment) for segment in segments]
            name = os.path.splitext(os.path.basename(record["file_name"]))[0] + ".png"
            prediction = {"image_id": record["image_id"], "file_name": name, "segments_info": segments}
            self._predicted.add(record["image_id"])
            self._predicted_categories |= {segment["category_id"] for segment in segments}
            if self._output_dir:
                self._predictions.append([prediction])
            truth = self._truth_of_image.get(record["image_id"])
            if truth is None:
                continue  # counted in evaluate()
            true_ids = read_ids(os.path.join(self._metadata.panoptic_root, truth["file_name"]))
            self._void_pixels += int(np.count_nonzero(true_ids == 0))
            self._pixels += true_ids.size
            self._stat += pq_of_image(true_ids, ids, truth, prediction, self._categories)

    def _segments_from_divisor(self, ids: np.ndarray) -> list[dict[str, Any]]:
        divisor = self._metadata.label_divisor
        things = self._thing_to_dataset
        classes = {label: int(label) // divisor for label in np.unique(ids).tolist() if label != -1}
        return [{"id": label + 1, "category_id": c, "isthing": c in things} for label, c in classes.items()]

    def _with_dataset_category(self, segment: dict[str, Any]) -> dict[str, Any]:
        """A copy that says what the category is called in the data set, and holds plain numbers."""
        category = int(segment["category_id"])
        if "isthing" in segment:
            category = (self._thing_to_dataset if segment["isthing"] else self._stuff_to_dataset)[category]
        return {"id": int(segment["id"]), "category_id": category}

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns:
            {"panoptic_seg": {PQ, SQ, RQ, PQ_th, ..., RQ_st}} in percent; None off the main process. NaN for things or
            stuff where the data has none.

        Raises:
            ValueError: an image of the ground truth was not predicted.
        """
        synchronize()
        seen = self._predicted, self._predicted_categories
        shares = gather((self._stat, self._predictions, self._void_pixels, self._pixels, *seen), dst=0)
        if not is_main_process():
            return None
        total = PQStat()
        for share in shares:
            total += share[0]
        self._check_images(set().union(*(share[4] for share in shares)))
        if self._output_dir:
            self._write(joined([share[1] for share in shares]))

        quality = summarize(total, self._categories)
        metrics = {
            name.upper() + suffix: 100 * quality[group][name]
            for group, suffix in _COLUMNS.items()
            for name in ("pq", "sq", "rq")
        }
        log_coverage(
            self._logger,
            "panoptic_seg",
            len(self._categories),
            {s["category_id"] for ann in self._truth["annotations"] for s in ann["segments_info"]},
            set().union(*(share[5] for share in shares)),
            sum(share[2] for share in shares) / max(sum(share[3] for share in shares), 1),
        )
        self._logger.info("Panoptic Evaluation Results:\n%s", create_small_table(metrics))
        warn_at_extremes(self._logger, "panoptic_seg", metrics, "PQ")
        return {"panoptic_seg": metrics}

    def _check_images(self, predicted: set[Any]) -> None:
        missing = sorted(self._truth_of_image.keys() - predicted, key=str)
        if missing:
            raise ValueError(f"{len(missing)} images of the ground truth were not predicted: {missing[:10]}")
        strange = sorted(predicted - self._truth_of_image.keys(), key=str)
        if strange:
            self._logger.warning("%d predicted images are not in the ground truth: %s", len(strange), strange[:10])

    def _write(self, predictions: Spool) -> None:
        assert self._output_dir is not None
        PathManager.mkdirs(self._output_dir)
        rest = json.dumps({key: value for key, value in self._truth.items() if key != "annotations"})
        with PathManager.open(os.path.join(self._output_dir, "predictions.json"), "w") as file:
            file.write(rest[:-1] + (", " if len(rest) > 2 else "") + '"annotations": ')
            write_json_list(predictions, file)
            file.write("}")


def _inverse(mapping: dict[int, int]) -> dict[int, int]:
    return {contiguous: dataset for dataset, contiguous in mapping.items()}
