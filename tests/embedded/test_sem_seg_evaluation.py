"""SemSegEvaluator: against a slow count, class by class and image by image."""

import json
import logging

import detectron2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

NAME, CLASSES, IGNORED = "test_sem_seg_evaluation", ["sky", "road", "tree", "ufo"], 255
ours_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream does otherwise")


@pytest.fixture
def dataset(tmp_path):
    """Three images; "ufo" never occurs in the ground truth; a fifth of it is ignored. -> {file: labels}."""
    rng, truth, records = np.random.default_rng(0), {}, []
    for image in range(3):
        labels = rng.integers(0, 3, (20, 30)).astype(np.uint8)
        labels[rng.random(labels.shape) < 0.2] = IGNORED
        path = str(tmp_path / f"{image}.png")
        Image.fromarray(labels).save(path)
        truth[f"{image}.jpg"] = labels.astype(int)
        records.append({"file_name": f"{image}.jpg", "sem_seg_file_name": path})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        stuff_classes=CLASSES,
        ignore_label=IGNORED,
        stuff_dataset_id_to_contiguous_id={10 * (i + 1): i for i in range(4)},
    )
    yield truth
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


def scores_of(labels):
    """(K, H, W) scores that say the labels."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels), len(CLASSES)).permute(2, 0, 1).float()


def evaluate(evaluator, predictions):
    evaluator.reset()
    for file_name, sem_seg in predictions.items():
        evaluator.process([{"file_name": file_name}], [{"sem_seg": sem_seg}])
    return evaluator.evaluate()["sem_seg"]


def slow_metrics(truth, predictions):
    """The definitions, one class at a time over all pixels that are not ignored."""
    gt = np.concatenate([labels.ravel() for labels in truth.values()])
    pred = np.concatenate([predictions[name].ravel() for name in truth])
    pred, gt = pred[gt != IGNORED], gt[gt != IGNORED]
    iou, accuracy, frequency = {}, {}, {}
    for index, name in enumerate(CLASSES):
        if (gt == index).any():
            both = ((gt == index) & (pred == index)).sum()
            iou[name] = 100 * both / ((gt == index) | (pred == index)).sum()
            accuracy[name] = 100 * both / (gt == index).sum()
            frequency[name] = (gt == index).mean()
    return {
        "mIoU": np.mean(list(iou.values())),
        "fwIoU": sum(iou[name] * frequency[name] for name in iou),
        "mACC": np.mean(list(accuracy.values())),
        "pACC": 100 * (gt == pred).mean(),
        **{f"IoU-{name}": value for name, value in iou.items()},
        **{f"ACC-{name}": value for name, value in accuracy.items()},
    }


def noisy(truth):
    rng = np.random.default_rng(1)
    wrong = {name: rng.integers(0, 4, labels.shape) for name, labels in truth.items()}
    return {n: np.where((rng.random(t.shape) < 0.6) & (t != IGNORED), t, wrong[n]) for n, t in truth.items()}


def test_the_numbers_are_those_of_the_definitions(dataset):
    predictions = noisy(dataset)
    metrics = evaluate(SemSegEvaluator(NAME), {name: scores_of(labels) for name, labels in predictions.items()})
    for key, value in slow_metrics(dataset, predictions).items():
        assert metrics[key] == pytest.approx(value, abs=1e-9), key
    assert np.isnan(metrics["IoU-ufo"]) and np.isnan(metrics["ACC-ufo"])


@ours_only
def test_a_map_of_labels_counts_like_scores(dataset):
    predictions = noisy(dataset)
    by_scores = evaluate(SemSegEvaluator(NAME), {name: scores_of(labels) for name, labels in predictions.items()})
    for dtype in (torch.uint8, torch.int64):
        by_labels = evaluate(SemSegEvaluator(NAME), {n: torch.from_numpy(p).to(dtype) for n, p in predictions.items()})
        assert by_labels == pytest.approx(by_scores, nan_ok=True)


@ours_only
def test_a_pixel_left_empty_is_a_miss(dataset):
    metrics = evaluate(SemSegEvaluator(NAME), {n: torch.full(t.shape, IGNORED) for n, t in dataset.items()})
    assert metrics["mIoU"] == metrics["pACC"] == 0


def test_ground_truth_as_predictions_scores_100(dataset, caplog):
    with caplog.at_level(logging.INFO):
        metrics = evaluate(
            SemSegEvaluator(NAME), {n: scores_of(np.where(t == IGNORED, 3, t)) for n, t in dataset.items()}
        )
    assert [metrics[key] for key in ("mIoU", "fwIoU", "mACC", "pACC", "IoU-sky")] == pytest.approx([100] * 5)
    if getattr(detectron2, "EMBEDDED", False):
        share = 100 * np.mean([labels == IGNORED for labels in dataset.values()])
        assert f"3 occur in the ground truth, 3 in the predictions; {share:.1f}%" in caplog.text
        assert "mIoU is exactly 100" in caplog.text


@ours_only
def test_labels_that_are_no_class_and_wrong_sizes_are_refused(dataset):
    evaluator = SemSegEvaluator(NAME)
    for sem_seg, message in (
        (torch.full((20, 30), 4), r"\[4\]"),
        (torch.full((20, 30), -1), r"\[-1\]"),
        (torch.zeros(20, 31, dtype=torch.int64), "31"),
        (torch.zeros(20, 30), "float32"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": sem_seg}])


@ours_only
def test_everything_ignored_is_warned_of(dataset, caplog):
    evaluator = SemSegEvaluator(NAME, sem_seg_loading_fn=lambda name, dtype: np.full((20, 30), IGNORED, dtype))
    metrics = evaluate(evaluator, {n: scores_of(np.zeros_like(t)) for n, t in dataset.items()})
    assert np.isnan(metrics["mIoU"]) and "ground truth is empty" in caplog.text


def test_predictions_are_written_with_the_ids_of_the_data_set(dataset, tmp_path):
    predictions = noisy(dataset)
    out = tmp_path / "out"
    evaluate(SemSegEvaluator(NAME, output_dir=str(out)), {n: scores_of(p) for n, p in predictions.items()})
    entries = json.loads((out / "sem_seg_predictions.json").read_text())
    assert len(entries) == 12
    for entry in entries:
        label = entry["category_id"] // 10 - 1
        mask = mask_util.decode(entry["segmentation"]).astype(bool)
        assert np.array_equal(mask, predictions[entry["file_name"]] == label)
    assert (out / "sem_seg_evaluation.pth").exists()


@ours_only
def test_boundary_iou_looks_at_the_rim_only(dataset, tmp_path):
    # 20x30: diagonal 36.06, of which 2 % are 0.72, so the rim is 1 pixel wide. An 8x8 square has a rim of 64 - 36 = 28
    # pixels; moved down by 1 it shares with the old rim two columns of 7 pixels, at distance 7: 14 of 42 in either.
    square = np.zeros((20, 30), int)
    square[4:12, 4:12] = 1
    evaluator = SemSegEvaluator(NAME, sem_seg_loading_fn=lambda name, dtype: square, boundary_iou=True)
    metrics = evaluate(evaluator, {"0.jpg": torch.from_numpy(np.roll(square, 1, axis=0))})
    assert metrics["IoU-road"] == pytest.approx(100 * 56 / 72)
    assert metrics["BoundaryIoU-road"] == pytest.approx(100 * 14 / 42)
    assert metrics["min(IoU, B-Iou)-road"] == metrics["BoundaryIoU-road"]
