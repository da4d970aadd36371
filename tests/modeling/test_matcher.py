"""Matching: against all permutations, hand-worked costs, and inputs that would break an assignment solver."""

import itertools
import math

import pytest
import torch

from mask2former.modeling.matcher import HungarianMatcher, pairwise_cross_entropy, pairwise_dice
from mask2former.modeling.transformer_decoder import Prediction


def _example(queries=5, segments=(3, 0, 2), classes=4, size=8):
    outputs = {
        "pred_logits": torch.randn(len(segments), queries, classes + 1),
        "pred_masks": torch.randn(len(segments), queries, size, size),
    }
    targets = [
        {"labels": torch.randint(classes, (g,)), "masks": torch.rand(g, 2 * size, 2 * size) > 0.5} for g in segments
    ]
    return outputs, targets


def test_pairwise_costs_by_hand():
    logits = torch.tensor([[0.0, 0.0]])
    truth = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(pairwise_cross_entropy(logits, truth), torch.full((1, 2), math.log(2)))
    # p = (1/2, 1/2): 1 - (2 * 1/2 + 1) / (1 + 1 + 1) and 1 - (2 * 1 + 1) / (1 + 2 + 1)
    torch.testing.assert_close(pairwise_dice(logits, truth), torch.tensor([[1 / 3, 1 / 4]]))


def test_pairwise_cross_entropy_of_certain_predictions_is_finite():
    cost = pairwise_cross_entropy(torch.tensor([[200.0, -200.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert cost.tolist() == [[0.0, 200.0]]


def test_the_match_is_the_best_of_all_permutations():
    outputs, targets = _example()
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=300)
    torch.manual_seed(3)
    matches = matcher(outputs, targets)
    torch.manual_seed(3)
    points = torch.rand(1, 3, 300, 2)
    for b, target in enumerate(targets):
        grid = 2 * points[0, b][None, :, None] - 1
        at = lambda maps, grid=grid: torch.nn.functional.grid_sample(maps[None], grid, align_corners=False)[0, :, :, 0]
        predicted, truth = at(outputs["pred_masks"][b]), at(target["masks"].float())
        probs = outputs["pred_logits"][b].softmax(-1)

        def cost(q, g, predicted=predicted, truth=truth, probs=probs, target=target):
            p, t = predicted[q].sigmoid(), truth[g]
            entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            return float(-2 * probs[q, target["labels"][g]] + 5 * entropy + 5 * dice)

        segments = range(len(target["labels"]))
        best = min(
            itertools.permutations(range(5), len(segments)),
            key=lambda qs: sum(cost(q, g) for q, g in zip(qs, segments)),
        )
        queries, matched = matches[b]
        assert dict(zip(matched.tolist(), queries.tolist())) == dict(enumerate(best))


def test_classes_decide_between_equal_masks():
    logits = torch.zeros(1, 3, 3)
    logits[0, 0, 1], logits[0, 2, 0] = 5, 5
    outputs = {"pred_logits": logits, "pred_masks": torch.zeros(1, 3, 4, 4)}
    targets = [{"labels": torch.tensor([0, 1]), "masks": torch.ones(2, 4, 4, dtype=torch.bool)}]
    queries, segments = HungarianMatcher(num_points=4)(outputs, targets)[0]
    assert dict(zip(queries.tolist(), segments.tolist())) == {0: 1, 2: 0}


def test_more_segments_than_queries_leaves_some_unmatched():
    outputs, targets = _example(queries=2, segments=(6,))
    queries, segments = HungarianMatcher(num_points=10)(outputs, targets)[0]
    assert sorted(queries.tolist()) == [0, 1] and len(set(segments.tolist())) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_prediction_is_the_worst_choice_not_a_crash(bad):
    outputs, targets = _example(queries=3, segments=(2,))
    outputs["pred_masks"][0, 1] = bad
    queries, _ = HungarianMatcher(num_points=20)(outputs, targets)[0]
    assert sorted(queries.tolist()) == [0, 2]


def test_layers_are_matched_as_one_by_one_with_the_same_points():
    layers, targets = [], _example()[1]
    for _ in range(4):
        layers.append(_example()[0])
    matcher = HungarianMatcher(num_points=50)
    torch.manual_seed(1)
    together = matcher.match_layers(layers, targets)
    torch.manual_seed(1)
    one_by_one = [matcher(layer, targets) for layer in layers]
    assert str(together) == str(one_by_one)


def test_masks_left_unmade_are_matched_the_same():
    embed, features = torch.randn(2, 5, 6), torch.randn(2, 6, 8, 8)
    targets = _example(segments=(3, 2))[1]
    lazy = Prediction(pred_logits=torch.randn(2, 5, 5), mask_embed=embed, mask_features=features)
    matcher = HungarianMatcher(num_points=50)
    torch.manual_seed(1)
    unmade = matcher(lazy, targets)
    assert "pred_masks" not in lazy
    plain = {"pred_logits": lazy["pred_logits"], "pred_masks": torch.einsum("bqc,bchw->bqhw", embed, features)}
    torch.manual_seed(1)
    assert str(unmade) == str(matcher(plain, targets))


def test_costs_are_computed_in_float32():
    outputs, targets = _example(segments=(2,))
    half = {name: value.bfloat16() for name, value in outputs.items()}
    back = {name: value.float() for name, value in half.items()}
    matcher = HungarianMatcher(num_points=50)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = matcher(half, targets)
    torch.manual_seed(1)
    assert str(low) == str(matcher(back, targets))


def test_all_costs_zero_is_refused():
    with pytest.raises(ValueError, match="CLASS_WEIGHT"):
        HungarianMatcher(0, 0, 0)
