"""Sampling at points and SSD's colours."""

import random

import cv2
import numpy as np
import pytest
import torch
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness, point_sample


def test_points_are_x_y_from_corner_to_corner():
    ramp = torch.tensor([[0.0, 1.0], [10.0, 11.0]])[None, None]
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.5, 0.25]]])
    sampled = point_sample(ramp, points, align_corners=False)
    assert torch.allclose(sampled, torch.tensor([[[0.0, 1.0, 10.0, 5.5, 0.5]]]))


def test_a_grid_of_points_gives_a_map():
    features = torch.rand(2, 3, 5, 5)
    grid = torch.rand(2, 4, 6, 2)
    sampled = point_sample(features, grid, align_corners=False)
    assert sampled.shape == (2, 3, 4, 6)
    assert torch.equal(sampled.flatten(2), point_sample(features, grid.flatten(1, 2), align_corners=False))


def test_further_arguments_reach_grid_sample():
    ramp = torch.tensor([[0.0, 1.0]])[None, None]
    assert point_sample(ramp, torch.tensor([[[0.6, 0.5]]]), mode="nearest", align_corners=False).item() == 1


def test_uncertain_points_lie_where_the_function_says_and_the_rest_anywhere():
    logits = torch.full((3, 1, 1, 64), 9.0)
    logits[..., :16] = 0.0  # the left quarter is uncertain
    points = get_uncertain_point_coords_with_randomness(logits, lambda sampled: -sampled.abs(), 40, 8.0, 0.75)
    assert points.shape == (3, 40, 2)
    assert (points[:, :30, 0] < 0.26).all()
    assert (points[:, 30:, 0] > 0.26).any()


def test_equal_seeds_give_the_documented_draws():
    logits = torch.rand(2, 1, 4, 4)
    torch.manual_seed(3)
    points = get_uncertain_point_coords_with_randomness(logits, lambda sampled: sampled, 4, 3.0, 0.5)
    torch.manual_seed(3)
    candidates, rest = torch.rand(2, 12, 2), torch.rand(2, 2, 2)
    assert torch.equal(points[:, 2:], rest)
    for n in range(2):
        best = point_sample(logits[n : n + 1], candidates[n : n + 1], align_corners=False)[0, 0].argsort(
            descending=True
        )
        assert torch.equal(points[n, :2], candidates[n, best[:2]])
    torch.manual_seed(3)
    get_uncertain_point_coords_with_randomness(logits, lambda sampled: sampled, 4, 3.0, 1.0)
    assert torch.equal(torch.rand(2, 2, 2), rest)  # without random points there is no second draw


@pytest.mark.parametrize(("oversample", "importance"), [(0.5, 0.5), (3.0, 1.5)])
def test_ratios_out_of_range_are_refused(oversample, importance):
    with pytest.raises(AssertionError):
        get_uncertain_point_coords_with_randomness(torch.rand(1, 1, 2, 2), torch.abs, 4, oversample, importance)


class Draws:
    """`random` with an answer for each call, in order."""

    def __init__(self, monkeypatch, *answers) -> None:
        self.answers = list(answers)
        for name in ("randrange", "uniform", "randint"):
            monkeypatch.setattr(random, name, self._next)

    def _next(self, *args):
        return self.answers.pop(0)


def test_without_luck_the_image_stays(monkeypatch):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    draws = Draws(monkeypatch, 0, 1, 0, 0, 0)
    assert np.array_equal(ColorAugSSDTransform("RGB").apply_image(image.copy()), image)
    assert not draws.answers


def test_brightness_and_contrast_clip_and_truncate(monkeypatch):
    image = np.array([[[0, 100, 250]]], dtype=np.uint8)
    Draws(monkeypatch, 1, 20.0, 1, 1, 0.5, 0, 0)  # 20, 120, 255; halved: 10, 60, 127.5
    assert ColorAugSSDTransform("BGR").apply_image(image).tolist() == [[[10, 60, 127]]]


def test_hue_turns_the_right_channels_of_rgb(monkeypatch):
    red = np.array([[[255, 0, 0]]], dtype=np.uint8)
    Draws(monkeypatch, 0, 0, 0, 1, 60, 0)  # saturation off, hue + 60 (120 degrees), contrast off
    assert ColorAugSSDTransform("RGB").apply_image(red).tolist() == [[[0, 255, 0]]]


def test_saturation_scales_s(monkeypatch):
    image = np.array([[[40, 120, 200]]], dtype=np.uint8)
    Draws(monkeypatch, 0, 0, 1, 0.5, 0, 0)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., 1] //= 2
    assert np.array_equal(ColorAugSSDTransform("BGR").apply_image(image), cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))


def test_labels_and_coordinates_stay_and_seeds_repeat():
    transform = ColorAugSSDTransform("RGB")
    labels, coords = np.arange(6).reshape(2, 3), np.ones((2, 2))
    assert np.array_equal(transform.apply_segmentation(labels), labels)
    assert np.array_equal(transform.apply_coords(coords), coords)
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    results = []
    for _ in range(2):
        random.seed(4)
        results.append(transform.apply_image(image.copy()))
    assert np.array_equal(*results) and results[0].dtype == np.uint8


def test_an_unknown_format_is_refused():
    with pytest.raises((ValueError, AssertionError)):
        ColorAugSSDTransform("HSV")
