"""Cityscapes' own scores for instances and for semantic segmentation.

cityscapesscripts compares folders of PNGs in one go. Here each image is compared when it is predicted, in memory, and
only counts are kept; the scores are then computed from the counts by cityscapesscripts' own functions. So there is no
working folder, nothing that machines must share, and memory does not depend on the number of images.

N predicted instances, M true instances of an image, H W size of an image.
"""

import importlib
import logging
import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image

from .coverage import log_coverage, warn_at_extremes

logger = logging.getLogger(__name__)

_IMAGE_SUFFIX = "_leftImg8bit"
# cityscapesscripts numbers instance k of label l as 1000 l + k; below that are labels, among them groups of objects.
_FIRST_INSTANCE = 1000
_LABELS = 256


class _CityscapesEvaluator(DatasetEvaluator):
    """Finds the ground truth of an image, and in the end gathers what all processes counted.

    Args:
        dataset_name: its metadata has gt_dir, the folder of the cities' folders of `*_gtFine_instanceIds.png`.
    """

    def __init__(self, dataset_name: str) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._gt_dir = Path(metadata.gt_dir)
        self._labels = import_cityscapesscripts("cityscapesscripts.helpers.labels")
        self.reset()

    def reset(self) -> None:
        self._seen: list[str] = []

    def _truth(self, file_name: str, kind: str, size: tuple[int, ...]) -> np.ndarray:
        """(H, W) int32 labels ("labelIds") or instances ("instanceIds") of an image.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it has another size than the prediction.
        """
        name = Path(file_name).stem.removesuffix(_IMAGE_SUFFIX)
        path = self._gt_dir / name.split("_")[0] / f"{name}_gtFine_{kind}.png"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing, the ground truth of {file_name} in '{self._dataset_name}'. Unpack gtFine there, "
                "or correct gt_dir in the metadata."
            )
        with Image.open(path) as image:
            ids = np.array(image, dtype=np.int32)
        if ids.shape != size:
            raise ValueError(f"{path} is {ids.shape}, the prediction {size}; predictions have to have the image's size")
        return ids

    def _gather(self, counted: Any) -> list[Any] | None:
        """What each process counted, on the main process; None elsewhere.

        Raises:
            ValueError: images of the ground truth were not predicted.
        """
        comm.synchronize()
        shares = comm.gather((self._seen, counted))
        if not comm.is_main_process():
            return None
        suffix = "_gtFine_instanceIds.png"
        wanted = {path.name.removesuffix(suffix) for path in self._gt_dir.glob(f"*/*{suffix}")}
        seen = {Path(name).stem.removesuffix(_IMAGE_SUFFIX) for names, _ in shares for name in names}
        if missing := sorted(wanted - seen):
            raise ValueError(
                f"{len(missing)} of the {len(wanted)} images in {self._gt_dir} were not predicted: {missing[:5]}"
            )
        return [counted for _, counted in shares]


class ImageMatches(NamedTuple):
    """How the predicted and the true instances of one label overlap in one image; int32, as it is kept to the end."""

    confidence: np.ndarray  # (N) float64
    area: np.ndarray  # (N) pixels
    void: np.ndarray  # (N) pixels on labels that do not count
    true_ids: np.ndarray  # (M), below 1000 for groups
    true_area: np.ndarray  # (M) pixels
    intersection: np.ndarray  # (N, M) pixels


class CityscapesInstanceEvaluator(_CityscapesEvaluator):
    """AP and AP50 of instances by Cityscapes' rules.

    Args:
        dataset_name: its metadata has gt_dir, and thing_classes with Cityscapes' names.
    """

    def __init__(self, dataset_name: str) -> None:
        super().__init__(dataset_name)
        self._scripts = import_cityscapesscripts("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
        self._names = [label.name for label in self._labels.labels if label.hasInstances and not label.ignoreInEval]
        self._classes = list(MetadataCatalog.get(dataset_name).thing_classes)
        unknown = sorted(set(self._classes) - self._labels.name2label.keys())
        if unknown:
            raise ValueError(f"thing_classes of '{dataset_name}' has names that Cityscapes does not: {unknown}")

    def reset(self) -> None:
        super().reset()
        self._images: list[bytes] = []
        self._ignored = self._pixels = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Args:
        inputs: with `file_name`.
        outputs: with `instances`: pred_masks (N, H, W), pred_classes, scores.
        """
        for record, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            ids = self._truth(record["file_name"], "instanceIds", tuple(instances.image_size))
            names = [self._classes[label] for label in instances.pred_classes.tolist()]
            matches = self._matches(ids, names, instances.scores.tolist(), instances.pred_masks)
            # As bytes: a thousand bytes an image instead of ten thousand in small arrays, until the end.
            self._images.append(zlib.compress(pickle.dumps(matches)))
            self._seen.append(record["file_name"])

    def _matches(
        self, ids: np.ndarray, names: list[str], scores: list[float], masks: Sequence[Any]
    ) -> dict[str, ImageMatches]:
        """The matches of one image, by the name of each label that occurs in it or is predicted.

        Args:
            ids: (H, W) true instances.
            names, scores, masks: of the N predictions; masks (H, W), anything but 0 is inside.
        """
        areas = np.bincount(ids.ravel()).astype(np.int32)
        present = np.flatnonzero(areas)
        index = np.zeros(len(areas), dtype=np.uint16)
        index[present] = np.arange(len(present))
        index_map = index[ids]  # (H, W), small numbers instead of ids
        overlaps = (
            np.array(  # (N, number of ids)
                [np.bincount(index_map[mask.numpy().astype(bool)], minlength=len(present)) for mask in masks]
            )
            .reshape(len(names), len(present))
            .astype(np.int32)
        )
        is_void = np.isin(present, [label.id for label in self._labels.labels if label.ignoreInEval])
        label_of = np.where(present < _FIRST_INSTANCE, present, present // _FIRST_INSTANCE)
        self._pixels += ids.size
        self._ignored += int(areas[present[is_void]].sum())

        area = overlaps.sum(1, dtype=np.int32)
        matches = {}
        for name in self._names:
            rows = [i for i in range(len(names)) if names[i] == name and area[i]]
            columns = label_of == self._labels.name2label[name].id
            if not rows and not columns.any():
                continue
            matches[name] = ImageMatches(
                confidence=np.array([scores[i] for i in rows]),
                area=area[rows],
                void=overlaps[rows][:, is_void].sum(1, dtype=np.int32),
                true_ids=present[columns].astype(np.int32),
                true_area=areas[present[columns]],
                intersection=overlaps[rows][:, columns],
            )
        return matches

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns:
            {"segm": {AP, AP50, AP-<class>..., AP50-<class>...}} in percent; None off the main process. NaN for classes
            that do not occur.

        Raises:
            ValueError: images of the ground truth were not predicted.
        """
        shares = self._gather((self._images, self._ignored, self._pixels))
        if shares is None:
            return None
        images = _Unpacked([image for share in shares for image in share[0]])
        args = SimpleNamespace(**vars(self._scripts.args))  # a copy: the original belongs to everybody
        by_name = []
        for name in self._names:  # one after the other: spelled out as dicts, matches take much more memory
            args.instLabels = [name]
            by_name.append(self._scripts.evaluateMatches(_spelled_out(images, name), args))
        args.instLabels = self._names
        with np.errstate(invalid="ignore"):
            averages = self._scripts.computeAverages(np.concatenate(by_name, axis=1), args)
        scores = {"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"])}
        for key, column in (("AP", "ap"), ("AP50", "ap50%")):
            scores |= {f"{key}-{n}": 100 * float(averages["classes"][n][column]) for n in self._names}
        log_coverage(
            logger,
            "segm",
            {n for image in images for n, m in image.items() if (m.true_ids >= _FIRST_INSTANCE).any()},
            {n for image in images for n, m in image.items() if len(m.area)},
            sum(share[1] for share in shares) / max(sum(share[2] for share in shares), 1),
        )
        warn_at_extremes(logger, "segm", scores, "AP")
        return {"segm": scores}


class _Unpacked:
    """Goes through the matches of all images, one image in memory at a time, as often as needed."""

    def __init__(self, images: list[bytes]) -> None:
        self._images = images

    def __iter__(self) -> Iterator[dict[str, ImageMatches]]:
        return (pickle.loads(zlib.decompress(image)) for image in self._images)


def _spelled_out(images: Iterable[dict[str, ImageMatches]], name: str) -> dict[int, dict[str, Any]]:
    """The matches of one label in the form that cityscapesscripts' evaluateMatches takes."""
    return {
        number: _spelled_out_image(image[name], name)
        if name in image
        else {"groundTruth": {name: []}, "prediction": {name: []}}
        for number, image in enumerate(images)
    }


def _spelled_out_image(matches: ImageMatches, name: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    truths = [
        # Without stereo images the distance is unknown, which is written so.
        {"instID": int(label), "pixelCount": int(area), "medDist": -1, "distConf": 0.0, "matchedPred": []}
        for label, area in zip(matches.true_ids, matches.true_area)
    ]
    predictions = []
    for i, (confidence, area, void) in enumerate(zip(matches.confidence, matches.area, matches.void)):
        predictions.append(
            {"confidence": float(confidence), "pixelCount": int(area), "voidIntersection": int(void), "matchedGt": []}
        )
        for j in np.flatnonzero(matches.intersection[i]):
            common = int(matches.intersection[i, j])
            truths[j]["matchedPred"].append(
                {"confidence": float(confidence), "pixelCount": int(area), "intersection": common}
            )
            predictions[-1]["matchedGt"].append({**truths[j], "matchedPred": None, "intersection": common})
    return {"groundTruth": {name: truths}, "prediction": {name: predictions}}


class CityscapesSemSegEvaluator(_CityscapesEvaluator):
    """IoU of classes and of categories (`_sup`), and the same weighted by the size of instances (iIoU).

    Args:
        dataset_name: its metadata has gt_dir; predicted classes are Cityscapes' 19 training ids.
    """

    def __init__(self, dataset_name: str) -> None:
        self._scripts = import_cityscapesscripts("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
        self._args = SimpleNamespace(**vars(self._scripts.args))
        super().__init__(dataset_name)
        ids = {label.trainId: label.id for label in self._labels.labels if 0 <= label.trainId < 255}
        self._label_id = np.array([ids[i] for i in range(len(ids))], dtype=np.uint8)

    def reset(self) -> None:
        super().reset()
        self._confusion = np.asarray(self._scripts.generateMatrix(self._args), dtype=np.int64)  # [true, predicted]
        self._instances = self._scripts.generateInstanceStats(self._args)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Args:
            inputs: with `file_name`.
            outputs: with `sem_seg`, (19, H, W) scores or (H, W) classes.

        Raises:
            ValueError: there are not 19 classes, or the ground truth has unknown labels.
        """
        for record, output in zip(inputs, outputs):
            classes = output["sem_seg"].argmax(0) if output["sem_seg"].dim() == 3 else output["sem_seg"]
            if int(classes.max()) >= len(self._label_id):
                raise ValueError(
                    f"class {int(classes.max())} was predicted for {record['file_name']}; Cityscapes evaluates the "
                    f"{len(self._label_id)} classes 0 ... {len(self._label_id) - 1}"
                )
            predicted = self._label_id[classes.cpu().numpy()]
            true = self._truth(record["file_name"], "labelIds", predicted.shape)
            count = len(self._confusion)
            if true.max() >= count:
                raise ValueError(
                    f"the ground truth of {record['file_name']} has label {true.max()}; "
                    f"Cityscapes has 0 ... {count - 1}"
                )
            self._confusion += np.bincount((true * count + predicted).ravel(), minlength=count**2).reshape(count, count)
            self._add_instances(self._truth(record["file_name"], "instanceIds", predicted.shape), predicted)
            self._seen.append(record["file_name"])

    def _add_instances(self, ids: np.ndarray, predicted: np.ndarray) -> None:
        """Count how much of each true instance has its label, and how much a label of its category.

        An instance counts as much as one of average size, so that large ones do not outweigh small ones.
        """
        inside = ids > _FIRST_INSTANCE
        instances, which = np.unique(ids[inside], return_inverse=True)
        found = np.bincount(which * _LABELS + predicted[inside], minlength=len(instances) * _LABELS)
        for instance, pixels in zip(instances.tolist(), found.reshape(-1, _LABELS)):
            label = self._labels.id2label[instance // _FIRST_INSTANCE]
            if label.ignoreInEval:
                continue
            size = pixels.sum()
            weight = self._args.avgClassSize[label.name] / size
            stats = [(self._instances["classes"][label.name], pixels[label.id])]
            if label.category in self._instances["categories"]:
                category = self._instances["categories"][label.category]
                stats.append((category, pixels[category["labelIds"]].sum()))
            for stat, hit in stats:
                for key, number in (("tp", hit), ("fn", size - hit)):
                    stat[key] += float(number)
                    stat[f"{key}Weighted"] += float(number) * weight

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns:
            {"sem_seg": {IoU, iIoU, IoU_sup, iIoU_sup, IoU-<class>..., iIoU-<class>...}} in percent; None off the main
            process. NaN for what does not occur.

        Raises:
            ValueError: images of the ground truth were not predicted.
        """
        shares = self._gather((self._confusion, self._instances))
        if shares is None:
            return None
        confusion = sum(share[0] for share in shares)
        stats = _sum_of_stats([share[1] for share in shares])
        scripts, args = self._scripts, self._args
        labels = [self._labels.id2label[i] for i in args.evalLabels if not self._labels.id2label[i].ignoreInEval]
        categories = {label.category for label in labels}
        tables = {
            "IoU": {a.name: scripts.getIouScoreForLabel(a.id, confusion, args) for a in labels},
            "iIoU": {a.name: scripts.getInstanceIouScoreForLabel(a.id, confusion, stats, args) for a in labels},
            "IoU_sup": {c: scripts.getIouScoreForCategory(c, confusion, args) for c in categories},
            "iIoU_sup": {c: scripts.getInstanceIouScoreForCategory(c, confusion, stats, args) for c in categories},
        }
        scores = {key: 100 * scripts.getScoreAverage(table, args) for key, table in tables.items()}
        for key in ("IoU", "iIoU"):
            scores |= {f"{key}-{name}": 100 * value for name, value in tables[key].items()}
        counted = [label.id for label in labels]
        true, predicted = confusion.sum(1), confusion[counted].sum(0)
        log_coverage(
            logger,
            "sem_seg",
            {label.name for label in labels if true[label.id]},
            {label.name for label in labels if predicted[label.id]},
            1 - true[counted].sum() / max(true.sum(), 1),
        )
        warn_at_extremes(logger, "sem_seg", scores, "IoU")
        return {"sem_seg": scores}


def _sum_of_stats(shares: list[dict[str, Any]]) -> dict[str, Any]:
    """The instance counts of all processes, added up."""
    total = shares[0]
    for share in shares[1:]:
        for group, stats in share.items():
            for name, stat in stats.items():
                for key in ("tp", "fn", "tpWeighted", "fnWeighted"):
                    total[group][name][key] += stat[key]
    return total


def import_cityscapesscripts(module: str) -> ModuleType:
    """A module of cityscapesscripts.

    Raises:
        ModuleNotFoundError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("cityscapesscripts"):
            raise
        raise ModuleNotFoundError(
            "Cityscapes' scores need cityscapesscripts: pip install 'mask2former[cityscapes]'", name=error.name
        ) from error
