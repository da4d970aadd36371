"""What the embedded evaluators keep: run lengths equal to pycocotools', lists on disk, AP by image like COCOeval's."""

import io
import json
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

pytest.importorskip("detectron2.evaluation.spool", reason="upstream detectron2 has its own ways")
from detectron2.evaluation.average_precision import StreamedCOCOeval
from detectron2.evaluation.rle import encode_labels, encode_masks, run_starts
from detectron2.evaluation.spool import Spool, joined, save_items, write_json_list
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def rle(mask):
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def test_masks_are_encoded_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for _ in range(300):
        count, height, width = rng.integers(0, 5), *rng.integers(1, 40, 2)
        masks = rng.random((count, height, width)) < rng.choice([0, 0.02, 0.5, 0.98, 1])
        assert encode_masks(torch.from_numpy(masks)) == [rle(mask) for mask in masks]


def test_runs_longer_than_four_characters_hold_and_masks_of_any_type_and_layout():
    masks = np.zeros((3, 2000, 2500), bool)
    masks[1, -1, -1] = masks[2, :, 1000:] = True
    expected = [rle(mask) for mask in masks]
    assert encode_masks(torch.from_numpy(masks)) == expected
    assert encode_masks(torch.from_numpy(masks.transpose(2, 1, 0).copy()).permute(2, 1, 0).float() * 0.1) == expected


def test_a_label_map_is_encoded_like_the_mask_of_each_label():
    rng = np.random.default_rng(0)
    for _ in range(300):
        labels = rng.integers(0, rng.integers(1, 6), rng.integers(1, 40, 2)) * rng.integers(1, 60)
        if rng.random() < 0.5:
            labels = np.sort(labels, axis=rng.integers(2))
        assert encode_labels(labels) == {k: rle(labels == k) for k in np.unique(labels).tolist()}


def test_runs_start_where_either_map_changes():
    a, b = np.array([[1, 1, 1], [1, 2, 2]]), np.array([[0, 0, 5], [5, 5, 7]], dtype=np.uint8)
    assert run_starts(a, b).tolist() == [0, 2, 4, 5]
    assert run_starts(np.zeros((0, 3), int)).tolist() == []


def test_a_spool_is_a_list_that_can_be_sent_and_joined():
    spool, items = Spool(), [[{"a": 1}], [], "text", np.arange(3).tolist()]
    for item in items:
        spool.append(item)
    assert [spool[i] for i in (0, 3, -1)] == [items[0], items[3], items[3]] and spool[1:3] == items[1:3]
    copy = pickle.loads(pickle.dumps(spool))
    copy.append("more")
    assert list(spool) == items and list(copy) == [*items, "more"]
    assert list(joined([spool, copy, [5]])) == [*items, *items, "more", 5]
    assert joined([items]) is items and not Spool()
    with pytest.raises(IndexError):
        spool[4]


@pytest.mark.parametrize("items", [[], [{"image_id": 3, "instances": [{"score": 0.5, "bbox": [1.0, 2.0]}]}] * 3])
def test_files_written_item_by_item_read_as_the_whole(items, tmp_path):
    with open(tmp_path / "list.pth", "wb") as file:
        save_items(iter(items), file)
    assert torch.load(tmp_path / "list.pth", weights_only=True) == items
    text = io.StringIO()
    write_json_list(iter([[], items, [], items]), text)
    assert text.getvalue() == json.dumps(items * 2)


def random_boxes(rng, count, image, categories):
    """Small, medium and large boxes on a coarse grid, so that equal overlaps occur; few scores, so that ties do."""
    boxes = np.concatenate([rng.integers(0, 2, (count, 2)) * 10, rng.choice([20, 30, 100], (count, 2))], axis=1)
    return [
        {
            "image_id": image,
            "category_id": int(rng.choice(categories)),
            "bbox": box,
            "score": float(rng.integers(6) / 5),
        }
        for box in boxes.astype(float).tolist()
    ]


@pytest.mark.parametrize("max_dets", [[1, 10, 100], [1, 3, 5]])
def test_every_number_of_cocoeval_is_the_same_with_ties_crowds_empty_images_and_unknown_categories(max_dets):
    rng = np.random.default_rng(0)
    found_areas = set()
    for _ in range(8):
        truths, found = [], []
        for image in (4, 1, 9, 2):
            truths += random_boxes(rng, 0 if image == 9 else rng.integers(1, 9), image, [1, 2, 3])
            found += random_boxes(rng, 0 if image == 2 else rng.integers(1, 30), image, [1, 2, 4, 7])
        for number, truth in enumerate(truths, start=1):
            truth.update(id=number, area=truth["bbox"][2] * truth["bbox"][3], iscrowd=int(rng.random() < 0.2))
        gt = COCO()
        gt.dataset = {"images": [{"id": image} for image in (4, 1, 9, 2)], "annotations": truths}
        gt.dataset["categories"] = [{"id": category} for category in (1, 2, 3, 4)]
        gt.createIndex()
        by_image = {image: [entry for entry in found if entry["image_id"] == image] for image in (1, 4, 9)}
        ours = StreamedCOCOeval(gt, by_image, "bbox")
        theirs = COCOeval(gt, gt.loadRes([dict(entry) for entry in found]), "bbox")
        for one in (ours, theirs):
            one.params.maxDets = max_dets
            one.evaluate()
            one.accumulate()
        for key in ("precision", "recall", "scores"):
            np.testing.assert_allclose(ours.eval[key], theirs.eval[key], rtol=0, atol=1e-14)
        found_areas |= {area for area in range(4) if (theirs.eval["precision"][:, :, :, area] > 0).any()}
    assert found_areas == {0, 1, 2, 3}


def test_results_for_an_image_without_ground_truth_entry_are_refused():
    gt = COCO()
    gt.dataset = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1}]}
    gt.createIndex()
    with pytest.raises(AssertionError, match=r"\[5\]"):
        StreamedCOCOeval(gt, {5: [{"category_id": 1, "score": 1.0, "bbox": [0, 0, 1, 1]}]}, "bbox")
