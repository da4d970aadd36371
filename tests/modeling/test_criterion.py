"""Losses: by hand, against a slow plain version, and where there is nothing to learn from."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils import comm

from mask2former.modeling.criterion import SetCriterion, dice_loss, sigmoid_cross_entropy_loss
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.transformer_decoder import Prediction


def _criterion(classes=3, eos=0.1, points=64, importance=0.75, losses=("labels", "masks")):
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=points)
    return SetCriterion(classes, matcher, {}, eos, losses, points, 3.0, importance)


def _outputs(images=2, queries=4, classes=3, size=8):
    return {
        "pred_logits": torch.randn(images, queries, classes + 1, requires_grad=True),
        "pred_masks": torch.randn(images, queries, size, size, requires_grad=True),
    }


def _targets(segments, classes=3, size=16):
    return [{"labels": torch.randint(classes, (g,)), "masks": torch.rand(g, size, size) > 0.5} for g in segments]


def test_mask_losses_by_hand():
    logits, truth = torch.zeros(2, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(sigmoid_cross_entropy_loss(logits, truth, 2), torch.tensor(math.log(2)))
    # 1 - (2 * 1 + 1) / (2 + 2 + 1) = 2/5 and 1 - (2 * 2 + 1) / (2 + 4 + 1) = 2/7, divided by 2 masks
    torch.testing.assert_close(dice_loss(logits, truth, 2), torch.tensor((2 / 5 + 2 / 7) / 2))


def test_class_loss_by_hand():
    # Uniform logits over 3 classes and "no object": every query costs ln 4, whatever the weights, as they normalise.
    outputs = {"pred_logits": torch.zeros(1, 4, 4), "pred_masks": torch.zeros(1, 4, 8, 8)}
    loss = _criterion(losses=["labels"])(outputs, _targets((1,)))
    torch.testing.assert_close(loss["loss_ce"], torch.tensor(math.log(4)))
    # One matched query that is sure and right, one "no object" with probability 1/2 against class 0:
    logits = torch.tensor([[[0.0, 50.0, 0.0, 0.0], [0.0, -50.0, -50.0, 0.0]]])
    masks = torch.zeros(1, 2, 8, 8)
    targets = [{"labels": torch.tensor([1]), "masks": torch.zeros(1, 8, 8, dtype=torch.bool)}]
    loss = _criterion(losses=["labels"])({"pred_logits": logits, "pred_masks": masks}, targets)
    torch.testing.assert_close(loss["loss_ce"], torch.tensor(0.1 * math.log(2) / 1.1))


def test_losses_equal_a_plain_version_with_the_same_points():
    criterion, outputs, targets = _criterion(), _outputs(), _targets((3, 1))
    torch.manual_seed(5)
    losses = criterion(outputs, targets)
    torch.manual_seed(5)
    matches = criterion.matcher(outputs, targets)
    masks = torch.cat([outputs["pred_masks"][b, queries] for b, (queries, _) in enumerate(matches)])
    truth = torch.cat([target["masks"][index] for target, (_, index) in zip(targets, matches)]).float()
    sample = lambda maps, points: F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]
    candidates = torch.rand(4, 192, 2)
    rank = sample(masks, candidates).abs().argsort(1)[:, :48]
    points = torch.cat([candidates.gather(1, rank[..., None].expand(-1, -1, 2)), torch.rand(4, 16, 2)], 1)
    p, t = sample(masks, points).sigmoid(), sample(truth, points)
    entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean(1).sum() / 4
    dice = (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).sum() / 4
    torch.testing.assert_close(losses["loss_mask"], entropy)
    torch.testing.assert_close(losses["loss_dice"], dice)


def test_each_layer_has_its_losses():
    outputs = {**_outputs(), "aux_outputs": [_outputs(), _outputs()]}
    losses = _criterion()(outputs, _targets((2, 1)))
    assert sorted(losses) == sorted(f"loss_{n}{s}" for n in ("ce", "mask", "dice") for s in ("", "_0", "_1"))


@pytest.mark.parametrize("lazy", [False, True])
def test_no_targets_still_give_gradients_to_everything(lazy):
    outputs = _outputs()
    leaves = list(outputs.values())
    if lazy:
        leaves = [outputs["pred_logits"], torch.randn(2, 4, 6, requires_grad=True)]
        leaves.append(torch.randn(2, 6, 8, 8, requires_grad=True))
        outputs = Prediction(pred_logits=leaves[0], mask_embed=leaves[1], mask_features=leaves[2])
    losses = _criterion()(outputs, _targets((0, 0)))
    assert losses["loss_mask"] == 0 and losses["loss_dice"] == 0 and losses["loss_ce"] > 0
    sum(losses.values()).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_masks_left_unmade_give_the_same_losses_and_gradients():
    targets = _targets((3, 1))
    results = []
    for lazy in (False, True):
        torch.manual_seed(2)
        embeds = [torch.randn(2, 4, 6, requires_grad=True) for _ in range(2)]
        features = torch.randn(2, 6, 8, 8, requires_grad=True)
        layers = []
        for embed in embeds:
            layer = Prediction(pred_logits=torch.randn(2, 4, 4), mask_embed=embed, mask_features=features)
            layers.append(layer if lazy else {"pred_logits": layer["pred_logits"], "pred_masks": layer["pred_masks"]})
        outputs = layers[0]
        outputs["aux_outputs"] = layers[1:]
        losses = _criterion()(outputs, targets)
        sum(losses.values()).backward()
        results.append((losses, [embed.grad for embed in embeds], features.grad))
    torch.testing.assert_close(results[0], results[1])


def test_losses_are_float32_under_autocast():
    outputs = {name: value.detach().bfloat16().requires_grad_() for name, value in _outputs().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = _criterion()(outputs, _targets((2, 1)))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_mask_losses_are_divided_by_the_average_number_of_masks_of_all_processes(monkeypatch):
    outputs, targets = _outputs(), _targets((3, 1))
    torch.manual_seed(5)
    alone = _criterion()(outputs, targets)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(12))  # another process has 12
    torch.manual_seed(5)
    together = _criterion()(outputs, targets)
    torch.testing.assert_close(together["loss_mask"], alone["loss_mask"] * 4 / 8)
    torch.testing.assert_close(together["loss_ce"], alone["loss_ce"])


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="boxes"):
        _criterion(losses=["boxes"])


def test_all_layers_together_are_each_layer_alone_at_the_same_points(monkeypatch):
    """More segments than queries, none, and fewer; losses and gradients."""
    criterion, targets = _criterion(), _targets((6, 0, 2))
    layers = [_outputs(images=3) for _ in range(3)]
    leaves = [leaf for layer in layers for leaf in layer.values()]
    draws, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: draws.append(rand(*args, **kwargs)) or draws[-1])
    together = criterion({**layers[0], "aux_outputs": layers[1:]}, targets)
    gradients = torch.autograd.grad(sum(together.values()), leaves)
    alone = {}
    for n, layer in enumerate(layers):
        again = iter([draws[0][n : n + 1], *draws[1 + 2 * n : 3 + 2 * n]])
        monkeypatch.setattr(torch, "rand", lambda *args, again=again, **kwargs: next(again))
        losses = criterion(layer, targets)
        alone |= {name + (f"_{n - 1}" if n else ""): loss for name, loss in losses.items()}
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(gradients, torch.autograd.grad(sum(alone.values()), leaves))
