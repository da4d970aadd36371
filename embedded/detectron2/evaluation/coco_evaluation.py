"""COCO's average precision of masks and boxes, with memory that does not grow with the images or their size."""

import contextlib
import copy
import io
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation.average_precision import StreamedCOCOeval
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.evaluation.rle import encode_masks
from detectron2.evaluation.sanity import log_coverage, warn_at_extremes
from detectron2.evaluation.spool import Spool, joined, save_items, write_json_list
from detectron2.structures import BoxMode, Instances
from detectron2.utils.comm import gather, is_main_process, synchronize
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

# Where a metric is in COCOeval's `stats`.
_METRICS = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}
_MAX_DETECTIONS = (1, 10, 100)


class COCOEvaluator(DatasetEvaluator):
    """AP of instances: "segm" for masks, "bbox" for boxes.

    Masks are run-length encoded and kept on disk until they are scored, one image after the other.
    Attributes and methods with one underscore are what known subclasses use: they stay.

    Args:
        dataset_name: its metadata has json_file, or the data set is converted to one in `output_dir`.
        tasks: "bbox", "segm", "keypoints"; by default what the predictions hold.
        distributed: gather the predictions of all processes.
        output_dir: where to write coco_instances_results.json and instances_predictions.pth, if anywhere.
        max_dets_per_image: how many of the best instances of an image count, 100 by default.
        use_fast_impl: False lets pycocotools score: slower, and it holds all predictions; the same numbers.
        kpt_oks_sigmas: for keypoints of other than COCO's number.
        allow_cached_coco: whether a converted file from an earlier run may be used.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        self._logger = logging.getLogger(__name__)
        self._distributed = distributed
        self._output_dir = output_dir
        self._kpt_oks_sigmas = kpt_oks_sigmas
        self._max_dets_per_image = max_dets_per_image
        self._cpu_device = torch.device("cpu")
        self._use_fast_impl = use_fast_impl
        if tasks is not None and not isinstance(tasks, (list, tuple)):
            self._logger.warning(
                "COCOEvaluator(name, cfg) is deprecated: pass tasks=(...) or nothing instead of a cfg."
            )
            tasks = None
        self._tasks = tasks

        self._metadata = MetadataCatalog.get(dataset_name)
        if not self._metadata.get("json_file"):
            self._metadata.json_file = self._convert(dataset_name, allow_cached_coco)
        self._coco_api = load_coco(PathManager.get_local_path(self._metadata.json_file))
        # A test set comes without annotations: then results are only written.
        self._do_evaluation = "annotations" in self._coco_api.dataset
        self.reset()

    def _convert(self, dataset_name: str, allow_cached: bool) -> str:
        if not self._output_dir:
            raise ValueError(
                f"{dataset_name} has no json_file; give output_dir, where the data set is converted to one"
            )
        path = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
        self._logger.info("Converting '%s' to COCO format in %s", dataset_name, path)
        convert_to_coco_json(dataset_name, path, allow_cached=allow_cached)
        return path

    def reset(self) -> None:
        self._predictions: Any = Spool()  # of {"image_id", "instances"}; subclasses may put a list here
        self._results: dict[str, dict[str, float]] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Args:
        inputs: with `image_id`.
        outputs: with `instances`, at the size of the original image; images without it are left out.
        """
        for record, output in zip(inputs, outputs):
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                entries = instances_to_coco_json(instances, record["image_id"])
                self._predictions.append({"image_id": record["image_id"], "instances": entries})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Args:
            img_ids: evaluate only these images.

        Returns:
            {"bbox": {AP, AP50, AP75, APs, APm, APl, AP-<class>...}, "segm": ...} in percent; NaN where there is nothing
            to measure. {} off the main process, without predictions and without annotations.
        """
        predictions = self._predictions
        if self._distributed:
            synchronize()
            shares = gather(predictions, dst=0)
            if not is_main_process():
                return {}
            predictions = joined(shares)
        if not predictions:
            self._logger.warning("[COCOEvaluator] Did not receive valid predictions.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as file:
                save_items(predictions, file)
        self._results = {}
        self._eval_predictions(predictions, img_ids=img_ids)
        return copy.deepcopy(self._results)

    def _tasks_from_predictions(self, predictions: Iterable[dict[str, Any]]) -> set[str]:
        """What can be measured: boxes, unless all are zero placeholders next to masks; masks and keypoints if given."""
        tasks, boxes_mean_something = {"bbox"}, False
        for entry in predictions:
            tasks |= {task for task, key in (("segm", "segmentation"), ("keypoints", "keypoints")) if key in entry}
            boxes_mean_something = boxes_mean_something or any(entry["bbox"])
        if "segm" in tasks and not boxes_mean_something:
            self._logger.info("All predicted boxes are zero: measuring masks only, not boxes.")
            tasks.remove("bbox")
        return tasks

    def _eval_predictions(self, predictions: Sequence[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Fill `self._results`, a table of metrics for each task.

        Args:
            predictions: {"image_id", "instances"} of each image, read several times and never held all at once.
        """
        found = Detections(predictions, lambda entries: entries)
        tasks = self._tasks or self._tasks_from_predictions(found)
        coco_results = Detections(predictions, self._with_dataset_categories)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info("Saving results to %s", path)
            with PathManager.open(path, "w") as file:
                write_json_list(coco_results.images(), file)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return

        found_categories = {entry["category_id"] for entry in coco_results}
        self._log_coverage(found_categories)
        for task in sorted(tasks):
            coco_eval = None
            if found_categories:
                coco_eval = _evaluate_predictions_on_coco(
                    self._coco_api,
                    coco_results,
                    task,
                    kpt_oks_sigmas=self._kpt_oks_sigmas,
                    use_fast_impl=self._use_fast_impl,
                    img_ids=img_ids,
                    max_dets_per_image=self._max_dets_per_image,
                )
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(coco_eval, task, class_names=names)

    def _with_dataset_categories(self, coco_results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results with the category ids that the json file uses."""
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_contiguous is None:
            return coco_results
        count = len(to_contiguous)
        assert sorted(to_contiguous.values()) == list(range(count)), (
            f"thing_dataset_id_to_contiguous_id has to map to 0..{count - 1}, not {sorted(to_contiguous.values())}"
        )
        to_dataset = {contiguous: dataset for dataset, contiguous in to_contiguous.items()}
        mapped = []
        for entry in coco_results:
            label = entry["category_id"]
            assert label in to_dataset, f"class {label} was predicted, but the data set has the classes 0..{count - 1}"
            mapped.append({**entry, "category_id": to_dataset[label]})
        return mapped

    def _log_coverage(self, found_categories: set[int]) -> None:
        annotations = self._coco_api.dataset["annotations"]
        crowds = sum(annotation.get("iscrowd", 0) for annotation in annotations)
        log_coverage(
            self._logger,
            "instances",
            len(self._coco_api.getCatIds()),
            {annotation["category_id"] for annotation in annotations if not annotation.get("iscrowd", 0)},
            found_categories,
            crowds / max(len(annotations), 1),
        )

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Read the metrics off a finished COCOeval.

        Args:
            coco_eval: None if there was nothing to evaluate.
            class_names: of the categories of the json file, in the order of their ids.

        Returns:
            percentages by name, NaN where COCOeval has -1 for "nothing to measure".
        """
        metrics = _METRICS[iou_type]
        if coco_eval is None:
            self._logger.warning("No predictions from the model!")
            return dict.fromkeys(metrics, float("nan"))
        results = {name: _percent(value) for name, value in zip(metrics, coco_eval.stats)}
        self._logger.info("Evaluation results for %s:\n%s", iou_type, create_small_table(results))
        if any(np.isnan(value) for value in results.values()):
            self._logger.info("Some metrics cannot be computed and is shown as NaN.")
        warn_at_extremes(self._logger, iou_type, results, "AP")
        if class_names is None or len(class_names) <= 1:
            return results

        precision = coco_eval.eval["precision"]  # (IoU thresholds, recalls, classes, area ranges, max detections)
        assert len(class_names) == precision.shape[2], (
            f"{len(class_names)} class names for the {precision.shape[2]} categories of the json file"
        )
        per_class = {}
        for index, name in enumerate(class_names):
            measured = precision[:, :, index, 0, -1]
            measured = measured[measured > -1]
            per_class[f"AP-{name}"] = 100 * float(measured.mean()) if measured.size else float("nan")
        lines = "\n".join(f"{name[3:]:<30s} {value:7.3f}" for name, value in per_class.items())
        self._logger.info("Per-category %s AP:\n%s", iou_type, lines)
        return {**results, **per_class}


def _percent(value: float) -> float:
    return 100 * float(value) if value >= 0 else float("nan")


def load_coco(json_file: str) -> COCO:
    """Read a COCO file without pycocotools' messages on standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(json_file)


def instances_to_coco_json(instances: Instances, img_id: int | str) -> list[dict[str, Any]]:
    """Write the instances of one image in COCO's format of results.

    Args:
        instances: on the CPU, with pred_boxes, scores, pred_classes; with pred_masks (N, H, W) if they have masks, and
            pred_keypoints (N, K, 3) if they have those.

    Returns:
        for each instance image_id, category_id (as predicted), bbox (x, y, width, height), score, and segmentation
        (compressed RLE) and keypoints where there are any.
    """
    if len(instances) == 0:
        return []
    boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    columns = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": boxes.tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        columns["segmentation"] = encode_masks(instances.pred_masks)
    if instances.has("pred_keypoints"):
        keypoints = instances.pred_keypoints.clone()
        keypoints[..., :2] -= 0.5  # COCO counts from the centre of a pixel
        columns["keypoints"] = keypoints.flatten(1).tolist()
    return [{"image_id": img_id, **dict(zip(columns, values))} for values in zip(*columns.values())]


class Detections:
    """The instances of predictions, as a list whose items are read when they are asked for.

    Args:
        predictions: {"image_id", "instances"}, possibly several of one image.
        finish: what makes results of the instances of an image.
    """

    def __init__(
        self,
        predictions: Sequence[dict[str, Any]],
        finish: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    ) -> None:
        self._predictions = predictions
        self._finish = finish

    def images(self) -> Iterator[list[dict[str, Any]]]:
        return (self._finish(image["instances"]) for image in self._predictions)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (entry for entries in self.images() for entry in entries)

    def by_image(self) -> "DetectionsByImage":
        return DetectionsByImage(self._predictions, self._finish)


class DetectionsByImage(Mapping[Any, list[dict[str, Any]]]):
    """The same by the image's id; memory holds where each image is found."""

    def __init__(
        self,
        predictions: Sequence[dict[str, Any]],
        finish: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    ) -> None:
        self._predictions = predictions
        self._finish = finish
        self._places: defaultdict[Any, list[int]] = defaultdict(list)
        for place, image in enumerate(predictions):
            if image["instances"]:
                self._places[image["image_id"]].append(place)

    def __getitem__(self, image: Any) -> list[dict[str, Any]]:
        if image not in self._places:
            raise KeyError(image)
        return [entry for i in self._places[image] for entry in self._finish(self._predictions[i]["instances"])]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _evaluate_predictions_on_coco(
    coco_gt: COCO,
    coco_results: Iterable[dict[str, Any]],
    iou_type: str,
    kpt_oks_sigmas: Sequence[float] | None = None,
    cocoeval_fn: Callable[..., Any] | None = None,
    img_ids: Sequence[int] | None = None,
    max_dets_per_image: Sequence[int] | int | None = None,
    *,
    use_fast_impl: bool = True,
) -> Any:
    """Run COCOeval: evaluate, accumulate, summarize.

    Args:
        coco_results: a list, or `Detections`.
        cocoeval_fn, use_fast_impl: which COCOeval; detectron2 has had both keywords, the first wins. By default the one
            that reads image by image, but for keypoints faster-coco-eval's.
        img_ids: only these images.
        max_dets_per_image: how many of the best count, or the three numbers that COCO calls maxDets.

    Returns:
        the COCOeval, whose `stats` are taken with the largest number of detections.
    """
    assert any(True for _ in coco_results), "no results to evaluate"
    streamed = cocoeval_fn is None and use_fast_impl and iou_type in ("segm", "bbox")
    if cocoeval_fn is None:
        cocoeval_fn = COCOeval_opt if use_fast_impl else COCOeval
    if cocoeval_fn is COCOeval_opt and any(isinstance(image_id, str) for image_id in coco_gt.imgs):
        cocoeval_fn = COCOeval  # the compiled one keeps ids as numbers; ADE20K's are text

    messages = io.StringIO()
    with contextlib.redirect_stdout(messages):
        if streamed:
            coco_eval = StreamedCOCOeval(coco_gt, _by_image(coco_results), iou_type)
        else:
            # With a box, COCO would take the area (small, medium, large) of a mask from it. And loadRes writes into it.
            unused = {"bbox"} if iou_type == "segm" else set()
            plain = [{key: entry[key] for key in entry.keys() - unused} for entry in coco_results]
            coco_eval = cocoeval_fn(coco_gt, coco_gt.loadRes(plain), iou_type)
        params = coco_eval.params
        if iou_type == "keypoints":
            if kpt_oks_sigmas:
                params.kpt_oks_sigmas = np.array(kpt_oks_sigmas)
        else:
            params.maxDets = _max_detections(max_dets_per_image)
        if img_ids is not None:
            params.imgIds = list(img_ids)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    if iou_type != "keypoints" and params.maxDets[-1] != _MAX_DETECTIONS[-1]:
        # pycocotools' summary looks for 100 detections whatever was asked for.
        coco_eval.stats = [*_average_precisions(coco_eval), *coco_eval.stats[6:]]
    logging.getLogger(__name__).debug(messages.getvalue())
    return coco_eval


def _by_image(coco_results: Iterable[dict[str, Any]]) -> Mapping[Any, Sequence[dict[str, Any]]]:
    if isinstance(coco_results, Detections):
        return coco_results.by_image()
    entries: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in coco_results:
        entries[entry["image_id"]].append(entry)
    return entries


def _max_detections(asked: Sequence[int] | int | None) -> list[int]:
    if asked is None:
        return list(_MAX_DETECTIONS)
    if isinstance(asked, int):
        return [min(number, asked) for number in _MAX_DETECTIONS[:2]] + [asked]
    return list(asked)


def _average_precisions(coco_eval: Any) -> list[float]:
    """AP, AP50, AP75, APs, APm, APl at the largest number of detections; -1 where nothing can be measured."""
    precision = coco_eval.eval["precision"][..., -1]  # (IoU thresholds, recalls, classes, area ranges)
    thresholds = np.asarray(coco_eval.params.iouThrs)
    parts = [precision[..., 0], *(precision[np.isclose(thresholds, level), ..., 0] for level in (0.5, 0.75))]
    parts += [precision[..., area] for area in (1, 2, 3)]
    return [float(part[part > -1].mean()) if (part > -1).any() else -1.0 for part in parts]
