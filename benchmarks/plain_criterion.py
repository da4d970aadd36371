"""The published order of matching and losses: layer by layer, image by image, from whole float masks; not for use.

B images, Q queries, K classes, G segments of an image, M matched pairs of the batch, P points, H W size of masks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former.modeling.criterion import SetCriterion

Targets = list[dict[str, Tensor]]


def plain_losses(criterion: SetCriterion, outputs: dict[str, Any], targets: Targets) -> dict[str, Tensor]:
    """Unweighted losses of all layers, at the same random points as those of `criterion`."""
    targets = [target | {"masks": target["masks"].float()} for target in targets]
    layers = [outputs, *outputs["aux_outputs"]]
    device = outputs["pred_logits"].device
    points = torch.rand(len(layers), len(targets), criterion.matcher.num_points, 2, device=device)
    # `criterion` draws the points of all matchings first, so matching comes first here too.
    matches = [
        [_match(criterion, layer, b, target, points[n, b]) for b, target in enumerate(targets)]
        for n, layer in enumerate(layers)
    ]
    losses = {}
    for n, (layer, match) in enumerate(zip(layers, matches, strict=True)):
        suffix = f"_{n - 1}" if n else ""
        names = ("loss_ce", "loss_mask", "loss_dice")
        values = (_class_loss(criterion, layer, targets, match), *_mask_losses(criterion, layer, targets, match))
        losses |= {name + suffix: value for name, value in zip(names, values, strict=True)}
    return losses


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """(M, H, W) maps at (M, P, 2) points: (M, P)."""
    return F.grid_sample(maps[:, None].float(), 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def _match(
    criterion: SetCriterion, layer: dict[str, Any], image: int, target: dict[str, Tensor], points: Tensor
) -> Any:
    """Queries and segments of least cost."""
    matcher = criterion.matcher
    with torch.no_grad():
        probs = layer["pred_logits"][image].float().softmax(-1)
        truth, logits = (
            at_points(masks, points.expand(len(masks), -1, -1))
            for masks in (target["masks"], layer["pred_masks"][image])
        )
        yes = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
        no = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
        entropy = (yes @ truth.T + no @ (1 - truth).T) / logits.shape[1]
        inside = logits.sigmoid()
        dice = 1 - (2 * inside @ truth.T + 1) / (inside.sum(-1)[:, None] + truth.sum(-1) + 1)
        cost = matcher.cost_mask * entropy + matcher.cost_dice * dice
        cost = cost - matcher.cost_class * probs[:, target["labels"]]
    return tuple(torch.as_tensor(index, device=logits.device) for index in linear_sum_assignment(cost.cpu()))


def _class_loss(criterion: SetCriterion, layer: dict[str, Any], targets: Targets, match: list[Any]) -> Tensor:
    logits = layer["pred_logits"].float()
    classes = torch.full(logits.shape[:2], criterion.num_classes, device=logits.device)
    for b, (queries, segments) in enumerate(match):
        classes[b, queries] = targets[b]["labels"][segments]
    return F.cross_entropy(logits.transpose(1, 2), classes, criterion.empty_weight)


def _mask_losses(
    criterion: SetCriterion, layer: dict[str, Any], targets: Targets, match: list[Any]
) -> tuple[Tensor, Tensor]:
    """Cross entropy and dice, (M, H, W) masks of the matched queries against whole float masks."""
    masks = torch.cat([layer["pred_masks"][b, queries] for b, (queries, _) in enumerate(match)]).float()
    truth = torch.cat([target["masks"][segments] for target, (_, segments) in zip(targets, match, strict=True)])
    with torch.no_grad():
        uncertain = int(criterion.importance_sample_ratio * criterion.num_points)
        device = masks.device
        candidates = torch.rand(len(masks), int(criterion.num_points * criterion.oversample_ratio), 2, device=device)
        chosen = (-at_points(masks, candidates).abs()).topk(uncertain, 1).indices
        others = torch.rand(len(masks), criterion.num_points - uncertain, 2, device=device)
        points = torch.cat([candidates.take_along_dim(chosen[..., None], 1), others], 1)
        wanted = at_points(truth, points)
    logits, count = at_points(masks, points), max(len(truth), 1)
    probs = logits.sigmoid()
    dice = 1 - (2 * (probs * wanted).sum(1) + 1) / (probs.sum(1) + wanted.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(
        1
    ).sum() / count, dice.sum() / count
