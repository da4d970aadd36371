"""Videos: an object keeps its colour from frame to frame."""

from types import SimpleNamespace

import detectron2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode

METADATA = SimpleNamespace(
    thing_classes=["cat", "dog"],
    thing_colors=[(200, 0, 0), (0, 200, 0)],
    stuff_classes=["cat", "dog", "sky"],
    stuff_colors=[(200, 0, 0), (0, 200, 0), (0, 0, 200)],
    thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
)
FRAME = np.full((200, 300, 3), 100, np.uint8)
Square = tuple[int, int, int]  # left, top, class
embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="pixels of our own drawing")


def predicted(squares: list[Square]) -> Instances:
    """Squares of 60 pixels."""
    masks = torch.zeros(len(squares), 200, 300, dtype=torch.bool)
    for mask, (x, y, _) in zip(masks, squares):
        mask[y : y + 60, x : x + 60] = True
    result = Instances(
        (200, 300), pred_masks=masks, pred_classes=torch.tensor([s[2] for s in squares], dtype=torch.int64)
    )
    result.scores = torch.ones(len(squares))
    result.pred_boxes = Boxes(torch.zeros(len(squares), 4))
    return result


def colors(video: VideoVisualizer, squares: list[Square]) -> list[tuple[int, ...]]:
    """The colour near a corner of each square, away from its label."""
    image = video.draw_instance_predictions(FRAME, predicted(squares)).get_image()
    return [tuple(image[y + 6, x + 6].tolist()) for x, y, _ in squares]


def panoptic_colors(video: VideoVisualizer, squares: list[Square]) -> list[tuple[int, ...]]:
    ids = torch.full((200, 300), 1, dtype=torch.int32)
    infos = [{"id": 1, "isthing": False, "category_id": 2}]
    for number, (x, y, category) in enumerate(squares, start=2):
        ids[y : y + 60, x : x + 60] = number
        infos.append({"id": number, "isthing": True, "category_id": category})
    image = video.draw_panoptic_seg_predictions(FRAME, ids, infos).get_image()
    return [tuple(image[y + 6, x + 6].tolist()) for x, y, _ in squares]


@embedded_only
@pytest.mark.parametrize("draw", [colors, panoptic_colors])
def test_colours_stay_with_moving_objects_whatever_their_order(draw):
    video = VideoVisualizer(METADATA)
    a, b = draw(video, [(20, 20, 0), (200, 20, 0)])
    assert a != b
    for step in range(1, 10):
        shift = 8 * step
        b_now, a_now = draw(video, [(200 - shift, 20 + shift, 0), (20, 20 + shift, 0)])
        assert (a_now, b_now) == (a, b)


@embedded_only
def test_a_newcomer_takes_no_colour_in_use_and_a_lost_object_gets_its_colour_back_for_eight_frames():
    video = VideoVisualizer(METADATA)
    a, b = colors(video, [(20, 20, 0), (200, 20, 0)])
    (newcomer,) = colors(video, [(110, 120, 0)])
    assert newcomer not in (a, b)
    for _ in range(7):
        colors(video, [])
    assert colors(video, [(200, 20, 0)]) == [b]
    for _ in range(9):
        colors(video, [])
    assert colors(video, [(200, 20, 0)]) == [a]  # forgotten: counts from the start again


@embedded_only
def test_of_two_objects_at_one_place_the_one_that_overlaps_more_keeps_the_colour():
    video = VideoVisualizer(METADATA)
    large, inner = torch.zeros(2, 1, 200, 300)
    large[:, 20:80, 20:80], inner[:, 32:80, 20:80] = 1, 1  # 48 / 60 of it: enough to be taken for it

    def drawn(masks: torch.Tensor) -> np.ndarray:  # without classes there are no labels
        return video.draw_instance_predictions(FRAME, Instances((200, 300), pred_masks=masks)).get_image().astype(int)

    elsewhere = large.roll(150, dims=2)
    first = drawn(torch.cat([large, elsewhere]))[26, 26]
    image = drawn(torch.cat([inner, large]))
    assert (image[26, 26] == first).all()
    # Where both lie the colour of the other comes on top; if it were the same one, the blend would be this.
    assert np.abs(image[70, 70] - (2 * first - FRAME[0, 0] + first) // 2).max() > 10


@embedded_only
def test_another_class_is_another_object():
    video = VideoVisualizer(METADATA)
    (red,) = colors(video, [(20, 20, 0)])
    (green,) = colors(video, [(20, 20, 1)])
    assert red[0] > red[1] and green[1] > green[0]


@embedded_only
def test_boxes_are_matched_without_masks():
    video = VideoVisualizer(METADATA)

    def lines(boxes: list[list[float]]) -> list[tuple[int, ...]]:
        found = Instances(
            (200, 300), pred_boxes=Boxes(torch.tensor(boxes)), pred_classes=torch.zeros(len(boxes)).long()
        )
        image = video.draw_instance_predictions(FRAME, found).get_image()
        return [tuple(image[int(box[3]), int(box[0]) + 40].tolist()) for box in boxes]

    a, b = lines([[20, 60, 100, 140], [200, 60, 280, 140]])
    assert a != b
    assert lines([[204, 64, 284, 144], [24, 64, 104, 144]]) == [b, a]


def test_semantic_frames_have_fixed_colours_and_modes_are_checked():
    video = VideoVisualizer(METADATA)
    labels = torch.full((200, 300), 2)
    first, second = (video.draw_sem_seg(FRAME, labels).get_image() for _ in range(2))
    assert (first == second).all() and first[5, 5, 2] > first[5, 5, 0]
    with pytest.raises(AssertionError):
        VideoVisualizer(METADATA, ColorMode.SEGMENTATION)


def test_the_memory_of_what_was_seen_does_not_grow():
    video = VideoVisualizer(METADATA)
    for frame in range(30):
        colors(video, [((37 * frame) % 240, (53 * frame) % 140, 0)])
    if getattr(detectron2, "EMBEDDED", False):
        assert len(video._tracks) <= 10
