"""Results: by hand, against the published order of operations on whole tensors, and the same in blocks of rows."""

import pytest
import torch
import torch.nn.functional as F

from mask2former import inference
from mask2former.inference import (
    Frame,
    blocks,
    instance_inference,
    panoptic_inference,
    resized_rows,
    semantic_inference,
)

FRAMES = {
    "as the image": Frame((32, 48), (27, 41), (27, 41)),
    "larger": Frame((32, 48), (27, 41), (61, 90)),
    "smaller": Frame((32, 48), (27, 41), (13, 17)),
    "other shape": Frame((32, 48), (32, 48), (50, 20)),
    "only wider": Frame((32, 48), (27, 41), (27, 80)),
}


@pytest.fixture(params=[1, 4 << 20, "kernels"], ids=["row by row", "at once", "kernels"], autouse=True)
def block_bytes(request, monkeypatch):
    """Every test runs with the smallest blocks, with one block, and with the fused kernels."""
    kernels = request.param == "kernels"
    monkeypatch.setenv("MASK2FORMER_DEFORM_ATTN", "numba" if kernels else "reference")
    if not kernels:
        monkeypatch.setitem(inference._BLOCK_BYTES, "cpu", request.param)
        monkeypatch.setitem(inference._BLOCK_BYTES, "scores", request.param)


def _logits(queries=9, classes=4):
    return 2 * torch.randn(queries, classes + 1), 3 * torch.randn(queries, 8, 12)


def _resize(maps, size):
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def _whole_masks(mask_logits, frame):
    height, width = frame.image
    return _resize(_resize(mask_logits, frame.padded)[:, :height, :width], frame.output)


def _one_pixel_frame(height, width):
    return Frame((height, width), (height, width), (height, width))


@pytest.mark.parametrize("size", [(5, 7), (11, 7), (23, 30), (3, 2), (1, 1)])
def test_rows_of_a_resized_map_equal_the_whole(size):
    maps = torch.randn(3, 9, 7)
    rows = resized_rows(lambda start, stop: maps[:, start:stop], (9, 7), size)
    ranges = [(0, 1), (size[0] - 1, size[0]), (size[0] // 3, size[0] // 3 + 1), (0, size[0])]
    for start, stop in ranges:
        torch.testing.assert_close(rows(start, stop), _resize(maps, size)[:, start:stop])


def test_blocks_cover_all_rows_once():
    rows = [row for start, stop in blocks(3, (10, 4), torch.device("cpu")) for row in range(start, stop)]
    assert rows == list(range(10))


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("resize_masks", [True, False])
def test_semantic_scores_equal_the_published_order(name, resize_masks):
    (class_logits, mask_logits), frame = _logits(), FRAMES[name]
    probs = class_logits.softmax(-1)[:, :-1]
    if resize_masks:
        expected = torch.einsum("qk,qhw->khw", probs, _whole_masks(mask_logits, frame).sigmoid())
    else:
        scores = torch.einsum("qk,qhw->khw", probs, _resize(mask_logits, frame.padded).sigmoid())
        expected = _resize(scores[:, : frame.image[0], : frame.image[1]], frame.output)
    result = semantic_inference(class_logits, mask_logits, frame, resize_masks=resize_masks, label_map=False)
    torch.testing.assert_close(result, expected)
    labels = semantic_inference(class_logits, mask_logits, frame, resize_masks=resize_masks, label_map=True)
    assert labels.dtype == torch.int64
    assert (labels != expected.argmax(0)).sum() <= 1  # but for a tie


@pytest.mark.parametrize("name", FRAMES)
def test_instances_equal_the_published_order(name):
    (class_logits, mask_logits), frame = _logits(), FRAMES[name]
    result = instance_inference(class_logits, mask_logits, frame, topk=20)
    best, pairs = class_logits.softmax(-1)[:, :-1].flatten().topk(20, sorted=False)
    masks = _whole_masks(mask_logits[pairs // 4], frame)
    inside = masks > 0
    quality = (masks.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    assert result.classes.tolist() == (pairs % 4).tolist()
    assert result.masks.dtype == torch.bool and (result.masks != inside).sum() <= 1
    torch.testing.assert_close(result.scores, best * quality, atol=1e-3, rtol=1e-4)


def test_boxes_enclose_the_masks():
    class_logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
    mask_logits = torch.full((3, 6, 8), -1.0)
    mask_logits[0, 2:4, 3:7] = 1
    mask_logits[1] = 1
    result = instance_inference(class_logits, mask_logits, _one_pixel_frame(6, 8), topk=3)
    by_area = {int(mask.sum()): box.tolist() for mask, box in zip(result.masks, result.boxes)}
    assert by_area == {8: [3, 2, 7, 4], 48: [0, 0, 8, 6], 0: [0, 0, 0, 0]}


def test_topk_takes_what_there_is_and_one_query_may_come_twice():
    class_logits, mask_logits = _logits(queries=2, classes=3)
    result = instance_inference(class_logits, mask_logits, FRAMES["larger"], topk=100)
    assert len(result.scores) == 6
    assert sorted(result.classes.tolist()) == [0, 0, 1, 1, 2, 2]


def test_instances_of_some_classes_only():
    class_logits, mask_logits = _logits()
    result = instance_inference(class_logits, mask_logits, FRAMES["larger"], topk=36, classes=[1, 3])
    assert set(result.classes.tolist()) == {1, 3} and len(result.scores) == 18
    none = instance_inference(class_logits, mask_logits, FRAMES["larger"], topk=36, classes=[])
    assert none.masks.shape == (0, 61, 90) and none.boxes.shape == (0, 4)


def _panoptic(labels, masks, things=frozenset({0, 1}), threshold=0.5, overlap=0.5):
    """Queries that are sure of their label (of classes 0, 1, 2; 3 is no object), one map of logits each."""
    class_logits = torch.full((len(labels), 4), -9.0)
    class_logits[range(len(labels)), labels] = 9.0
    masks = torch.tensor(masks, dtype=torch.float32)
    frame = _one_pixel_frame(*masks.shape[1:])
    result, segments = panoptic_inference(
        class_logits, masks, frame, things=things, object_mask_threshold=threshold, overlap_threshold=overlap
    )
    assert result.dtype == torch.int32
    return result.tolist(), [(s["id"], s["isthing"], s["category_id"]) for s in segments]


def test_things_stay_apart_and_stuff_is_joined():
    ids, segments = _panoptic(
        [0, 2, 0, 2, 3],
        [[[9, -9, -9, -9]], [[-9, 9, -9, -9]], [[-9, -9, 9, -9]], [[-9, -9, -9, 9]], [[99, 99, 99, 99]]],
    )
    assert ids == [[1, 2, 3, 2]]
    assert segments == [(1, True, 0), (2, False, 2), (3, True, 0)]


def test_a_pixel_that_nobody_is_sure_of_stays_void():
    ids, segments = _panoptic([0, 1], [[[9, -1, -9]], [[-9, -2, 9]]])
    assert ids == [[1, 0, 2]] and len(segments) == 2


def test_a_segment_that_loses_most_of_its_mask_is_dropped():
    masks = [[[9, 9, 9, -9]], [[5, 5, 5, 5]]]  # the second keeps 1 of its 4 pixels
    assert _panoptic([0, 1], masks, overlap=0.25) == ([[1, 1, 1, 2]], [(1, True, 0), (2, True, 1)])
    assert _panoptic([0, 1], masks, overlap=0.26) == ([[1, 1, 1, 0]], [(1, True, 0)])


def test_a_segment_that_wins_only_pixels_outside_its_mask_is_dropped():
    ids, segments = _panoptic([0, 1], [[[2, -1]], [[9, -5]]])
    assert ids == [[1, 0]] and segments == [(1, True, 1)]


def test_nothing_kept_gives_an_empty_map():
    assert _panoptic([3, 3], [[[9, 9]], [[9, 9]]]) == ([[0, 0]], [])
    assert _panoptic([0], [[[9, 9]]], threshold=1.0) == ([[0, 0]], [])
    assert _panoptic([0], [[[-9, -9]]]) == ([[0, 0]], [])  # kept, but its mask is empty


@pytest.mark.parametrize("name", FRAMES)
def test_panoptic_equals_a_plain_version(name):
    (class_logits, mask_logits), frame = _logits(queries=20), FRAMES[name]
    things, threshold, overlap = {0, 1}, 0.3, 0.2
    result, segments = panoptic_inference(
        class_logits, mask_logits, frame, things=things, object_mask_threshold=threshold, overlap_threshold=overlap
    )
    scores, labels = class_logits.softmax(-1).max(-1)
    keep = [q for q in range(20) if labels[q] != 4 and scores[q] > threshold]
    probs = _whole_masks(mask_logits, frame).sigmoid()
    winner = torch.stack([scores[q] * probs[q] for q in keep]).argmax(0)
    expected, categories, stuff = torch.zeros(frame.output, dtype=torch.int32), [], {}
    for i, q in enumerate(keep):
        won, own = winner == i, probs[q] >= 0.5
        if not (won & own).any() or won.sum() / own.sum() < overlap:
            continue
        label = int(labels[q])
        if label not in stuff:
            categories.append(label)
        number = stuff.get(label, len(categories))
        if label not in things:
            stuff[label] = number
        expected[won & own] = number
    assert [segment["category_id"] for segment in segments] == categories
    assert len(categories) > 2
    assert (result != expected).sum() <= 1
