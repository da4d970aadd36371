"""COCOEvaluator: AP against pycocotools, and what it does with the placeholders Mask2Former gives as boxes."""

import json
import logging

import detectron2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco, instances_to_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 120, 160
CATEGORIES = {1: "cat", 5: "dog", 9: "cow"}  # ids with holes, as COCO has them

ours_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream does otherwise")


def rle(mask):
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def random_mask(rng):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    side = int(rng.choice([12, 20, 60, 110]))  # small, medium and large for COCO
    y, x = rng.integers(0, HEIGHT - side), rng.integers(0, WIDTH - side)
    mask[y : y + side, x : x + side] = True
    if rng.random() < 0.5:  # a frame: large for its box, not for its mask
        mask[y + 3 : y + side - 3, x + 3 : x + side - 3] = False
    return mask


@pytest.fixture
def truth(tmp_path):
    """Six images; small, medium and large objects; one of them a crowd. -> name of the data set, masks and labels."""
    rng = np.random.default_rng(3)
    annotations, masks = [], {}
    for image in range(6):
        masks[image] = []
        for _ in range(5):
            mask, category = random_mask(rng), int(rng.choice(list(CATEGORIES)))
            masks[image].append((mask, category))
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [float(side) for side in box],
                    "area": float(mask.sum()),
                    "iscrowd": int(len(annotations) == 7),
                    "segmentation": rle(mask),
                }
            )
    path = tmp_path / "truth.json"
    images = [{"id": image, "height": HEIGHT, "width": WIDTH} for image in range(6)]
    categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))
    name = "test_coco_evaluation"
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=list(CATEGORIES.values()),
        thing_dataset_id_to_contiguous_id={key: index for index, key in enumerate(CATEGORIES)},
    )
    yield name, path, masks
    MetadataCatalog.pop(name)


def instances(masks, labels, scores, boxes=None):
    found = Instances((HEIGHT, WIDTH))
    found.pred_masks = torch.from_numpy(np.stack(masks))
    found.pred_classes = torch.tensor(labels)
    found.scores = torch.tensor(scores)
    found.pred_boxes = Boxes(torch.zeros(len(labels), 4) if boxes is None else boxes)
    return found


def perfect(masks, boxes=None):
    keys = list(CATEGORIES)
    return instances([m for m, _ in masks], [keys.index(c) for _, c in masks], [0.9] * len(masks), boxes)


def evaluate(evaluator, outputs):
    evaluator.reset()
    for image, found in outputs.items():
        evaluator.process([{"image_id": image}], [{"instances": found}])
    return evaluator.evaluate()


def noisy(masks, rng):
    """Shifted masks, sometimes another class, and objects that are not there."""
    found, labels = [], []
    for mask, category in masks:
        for shift in (0, 2, 9):
            found.append(np.roll(mask, (shift, rng.integers(0, 4)), (0, 1)))
            labels.append(list(CATEGORIES).index(category) if rng.random() < 0.8 else 2)
    found += [random_mask(rng) for _ in range(4)]
    labels += rng.integers(0, 3, 4).tolist()
    boxes = []
    for mask in found:
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    boxes = torch.tensor(np.array(boxes), dtype=torch.float32)
    return instances(found, labels, rng.random(len(found)).tolist(), boxes)


def test_ground_truth_as_predictions_scores_100(truth):
    name, _, masks = truth
    result = evaluate(COCOEvaluator(name), {image: perfect(some) for image, some in masks.items()})["segm"]
    assert [result[key] for key in ("AP", "AP50", "AP75", "AP-cat", "AP-dog", "AP-cow")] == pytest.approx([100] * 6)


@pytest.mark.parametrize("max_dets", [None, 12])
@pytest.mark.parametrize("fast", [True, False])
def test_the_numbers_are_those_of_pycocotools(truth, fast, max_dets):
    name, path, masks = truth
    rng = np.random.default_rng(1)
    outputs = {image: noisy(some, rng) for image, some in masks.items()}
    result = evaluate(COCOEvaluator(name, use_fast_impl=fast, max_dets_per_image=max_dets), outputs)

    to_dataset = dict(enumerate(CATEGORIES))
    entries = [entry for image, found in outputs.items() for entry in instances_to_coco_json(found, image)]
    for entry in entries:
        entry["category_id"] = to_dataset[entry["category_id"]]
    gt = COCO(str(path))
    for task in ("bbox", "segm"):
        plain = [{k: v for k, v in e.items() if k != ("bbox" if task == "segm" else "segmentation")} for e in entries]
        coco_eval = COCOeval(gt, gt.loadRes(plain), task)
        coco_eval.params.maxDets = [1, 10, max_dets or 100]
        coco_eval.evaluate()
        coco_eval.accumulate()
        precision = coco_eval.eval["precision"][..., -1]
        areas = {"AP": 0, "APs": 1, "APm": 2, "APl": 3}
        for key, area in areas.items():
            expected = precision[..., area]
            assert result[task][key] == pytest.approx(100 * expected[expected > -1].mean(), abs=1e-9)
        assert result[task]["AP50"] == pytest.approx(100 * precision[0, ..., 0].mean(), abs=1e-9)
        assert result[task]["AP75"] == pytest.approx(100 * precision[5, ..., 0].mean(), abs=1e-9)
        for index, label in enumerate(CATEGORIES.values()):
            assert result[task][f"AP-{label}"] == pytest.approx(100 * precision[:, :, index, 0].mean(), abs=1e-9)
    assert 0 < result["segm"]["AP"] < 100


@ours_only
def test_zero_placeholder_boxes_are_not_scored_and_boxes_from_masks_are(truth):
    name, _, masks = truth
    evaluator = COCOEvaluator(name)
    assert set(evaluate(evaluator, {image: perfect(some) for image, some in masks.items()})) == {"segm"}
    rng = np.random.default_rng(1)
    assert set(evaluate(evaluator, {image: noisy(some, rng) for image, some in masks.items()})) == {"bbox", "segm"}


@ours_only
def test_both_keywords_for_the_implementation_are_taken(truth):
    _, path, masks = truth
    entries = [entry for image, some in masks.items() for entry in instances_to_coco_json(perfect(some), image)]
    for entry in entries:
        entry["category_id"] = list(CATEGORIES)[entry["category_id"]]
    gt = COCO(str(path))
    scores = [
        _evaluate_predictions_on_coco(gt, entries, "segm", **keyword).stats[0]
        for keyword in ({"use_fast_impl": True}, {"use_fast_impl": False}, {"cocoeval_fn": COCOeval}, {})
    ]
    assert scores == pytest.approx([1.0] * 4)
    assert "bbox" in entries[0] and "area" not in entries[0]  # the caller's list is left alone


def test_a_mask_that_fills_odd_places_survives_encoding():
    mask = torch.rand(3, 7, 11) > 0.5
    found = instances(list(mask.numpy()), [0, 1, 2], [0.1, 0.2, 0.3])
    for source in (mask, mask.float()):
        found.pred_masks = source
        entries = instances_to_coco_json(found, 4)
        assert all(np.array_equal(mask_util.decode(e["segmentation"]), m) for e, m in zip(entries, mask.numpy()))
    assert [entry["category_id"] for entry in entries] == [0, 1, 2] and entries[0]["image_id"] == 4
    assert instances_to_coco_json(found[[]], 4) == []


def test_no_instances_give_nan_and_no_images_give_nothing(truth):
    name, _, masks = truth
    nothing = evaluate(COCOEvaluator(name), {image: perfect(some)[[]] for image, some in masks.items()})
    assert set(nothing) == {"bbox"} and all(np.isnan(value) for value in nothing["bbox"].values())
    assert evaluate(COCOEvaluator(name), {}) == {}


def test_a_class_the_data_does_not_have_is_refused(truth):
    name, _, masks = truth
    found = perfect(masks[0])
    found.pred_classes = torch.full_like(found.pred_classes, 3)
    with pytest.raises(AssertionError, match="3"):
        evaluate(COCOEvaluator(name), {0: found})


@ours_only
def test_a_score_of_exactly_0_is_warned_of(truth, caplog):
    name, _, masks = truth
    wrong = {image: instances([np.eye(HEIGHT, WIDTH, dtype=bool)], [0], [0.5]) for image in masks}
    with caplog.at_level(logging.INFO):
        assert evaluate(COCOEvaluator(name), wrong)["segm"]["AP"] == 0
    assert "AP is exactly 0" in caplog.text
    assert "3 occur in the ground truth, 1 in the predictions" in caplog.text


def test_predictions_are_written_with_the_ids_of_the_data_set(truth, tmp_path):
    name, _, masks = truth
    evaluate(COCOEvaluator(name, output_dir=str(tmp_path / "out")), {0: perfect(masks[0])})
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [entry["category_id"] for entry in written] == [category for _, category in masks[0]]


@ours_only
def test_a_data_set_without_json_asks_for_a_folder_to_convert_it_in():
    name = "test_coco_without_json"
    DatasetCatalog.register(name, lambda: [])
    try:
        with pytest.raises(ValueError, match="output_dir"):
            COCOEvaluator(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
