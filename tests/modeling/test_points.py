"""Masks at points: against hand-worked pixels and torch's grid_sample."""

import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling.points import sample_features, sample_masks, uncertain_points


def _grid_sample(maps, points):
    """(M, H, W) at (M, P, 2), by torch."""
    return F.grid_sample(maps[:, None].float(), 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def test_the_middle_of_four_pixels_is_their_mean():
    mask = torch.tensor([[[1, 0], [1, 1]]], dtype=torch.bool)
    points = torch.tensor([[[0.5, 0.5], [0.25, 0.25], [0.75, 0.25], [0.5, 0.75], [0.0, 0.25]]])
    # Centres of pixels are exact; outside counts as 0, so a point on the border has half of its pixel.
    assert sample_masks(mask, points).tolist() == [[0.75, 1.0, 0.0, 1.0, 0.5]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_samples_equal_grid_sample(dtype):
    masks = (torch.rand(3, 7, 5) > 0.5).to(dtype)
    points = torch.rand(3, 200, 2)
    torch.testing.assert_close(sample_masks(masks, points), _grid_sample(masks, points))


def test_points_can_be_shared_by_all_masks():
    masks = torch.rand(3, 7, 5) > 0.5
    points = torch.rand(1, 50, 2)
    torch.testing.assert_close(sample_masks(masks, points), _grid_sample(masks, points.expand(3, -1, -1)))


def test_no_masks_give_no_samples():
    assert sample_masks(torch.zeros(0, 7, 5, dtype=torch.bool), torch.rand(1, 9, 2)).shape == (0, 9)


def test_features_are_sampled_like_maps():
    maps = torch.randn(6, 7, 5)
    points = torch.rand(80, 2)
    expected = _grid_sample(maps, points.expand(6, -1, -1)).T
    torch.testing.assert_close(sample_features(maps.permute(1, 2, 0).contiguous(), points), expected)


def test_uncertain_points_lie_where_the_logit_is_near_zero():
    logits = torch.linspace(-8, 8, 64).expand(1, 64, 64)  # zero in the middle column
    points = uncertain_points(logits, 100, 10.0, 1.0)
    assert points.shape == (1, 100, 2)
    # Every tenth candidate is kept: about those within a twentieth of the width on either side.
    assert (points[..., 0] - 0.5).abs().max() < 0.08
    anywhere = uncertain_points(logits, 100, 10.0, 0.0)
    assert (anywhere[..., 0] - 0.5).abs().max() > 0.4
