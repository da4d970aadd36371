"""Bipartite matching of queries to ground-truth segments (paper, section 3.3).

N layers, B images, Q queries, K classes, G segments of an image (all images: sum of G), P points, H W size of masks.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor, nn

from .points import sample_features, sample_masks

Match = tuple[Tensor, Tensor]  # matched queries and their segments, both int64

# Stands for a cost that is not a number or infinite: worse than any real cost, and small enough to add up.
WORST_COST = 1e6
# As many layers are compared together as have about so many mask logits: on a CPU more would leave the cache; on a GPU
# fewer would keep the host busy with starting kernels.
ELEMENTS_AT_ONCE = {"cpu": 1 << 20}
ELEMENTS_AT_ONCE_GPU = 1 << 26


class HungarianMatcher(nn.Module):
    """Give each segment the query of least total cost; a query takes one segment at most."""

    def __init__(
        self, cost_class: float = 1.0, cost_mask: float = 1.0, cost_dice: float = 1.0, num_points: int = 0
    ) -> None:
        """
        Args:
            cost_class, cost_mask, cost_dice: weights of the three costs.
            num_points: P, uniformly random points per layer and image at which masks are compared.
        """
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError("All matching costs are 0: set at least one of CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT.")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points

    def forward(self, outputs: dict[str, Any], targets: Sequence[dict[str, Tensor]]) -> list[Match]:
        """Match the predictions of one layer: see `match_layers`; returns one match per image."""
        return self.match_layers([outputs], targets)[0]

    @torch.no_grad()
    def match_layers(self, layers: Sequence[dict[str, Any]], targets: Sequence[dict[str, Tensor]]) -> list[list[Match]]:
        """Match the predictions of several layers, with one transfer from the device for all of them.

        Random points are drawn at once: layer by layer, within a layer image by image.

        Args:
            layers: N dicts of "pred_logits" (B, Q, K+1) and "pred_masks" (B, Q, H, W), or `Prediction`s.
            targets: B dicts of "labels" (G) and "masks" (G, H', W').

        Returns:
            N lists of B matches; each pair of tensors, on the device of the predictions, has min(Q, G) entries.
        """
        from scipy.optimize import linear_sum_assignment  # here: half of the time it takes to import this package

        device = layers[0]["pred_logits"].device
        points = torch.rand(len(layers), len(targets), self.num_points, 2, device=device)
        with torch.autocast(device.type, enabled=False):
            probs = torch.stack([layer["pred_logits"] for layer in layers]).float().softmax(-1)  # (N, B, Q, K+1)
            elements = ELEMENTS_AT_ONCE.get(device.type, ELEMENTS_AT_ONCE_GPU)
            step = max(1, elements // (probs.shape[2] * self.num_points or 1))
            costs = []  # B of (N, Q, G)
            for b, target in enumerate(targets):
                groups = points[:, b].split(step)
                predicted = masks_at_points(layers, b, groups)
                class_probs = probs[:, b].split(step)
                costs.append(torch.cat([self._cost(*group, target) for group in zip(class_probs, predicted, groups)]))
        on_host = torch.cat([cost.flatten() for cost in costs]).cpu().split([cost.numel() for cost in costs])
        by_image = [
            [linear_sum_assignment(matrix) for matrix in values.view(cost.shape).numpy()]
            for values, cost in zip(on_host, costs, strict=True)
        ]
        return _to_device([list(layer) for layer in zip(*by_image, strict=True)], device)

    def _cost(self, probs: Tensor, predicted: Tensor, points: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Cost of every query for every segment, of one image and some layers.

        Args:
            probs: (N, Q, K+1).
            predicted: (N, Q, P), mask logits at the points.
            points: (N, P, 2).

        Returns:
            (N, Q, G) float32, finite.
        """
        truth = sample_masks(target["masks"], points.flatten(0, 1)[None])  # (G, N*P)
        truth = truth.unflatten(1, points.shape[:2]).transpose(0, 1)  # (N, G, P)
        cost = (
            self.cost_class * -probs[..., target["labels"]]
            + self.cost_mask * pairwise_cross_entropy(predicted, truth)
            + self.cost_dice * pairwise_dice(predicted, truth)
        )
        return torch.where(cost.isfinite(), cost, WORST_COST)


def masks_at_points(layers: Sequence[dict[str, Any]], image: int, groups: Sequence[Tensor]) -> Iterator[Tensor]:
    """Mask logits of one image at points, without making whole masks where the decoder left them unmade.

    Args:
        layers: N predictions, see `HungarianMatcher.match_layers`.
        groups: (n, P, 2) points of the first n layers, of the next, and so on.

    Yields:
        (n, Q, P) float32 of each group.
    """
    unmade = "mask_embed" in layers[0]
    if unmade:  # sampling is linear too: sample the features, which all layers share, and multiply there
        features = layers[0]["mask_features"][image].permute(1, 2, 0).float().contiguous()  # (H, W, C)
    remaining = iter(layers)
    for points in groups:
        group = list(islice(remaining, len(points)))
        key = "mask_embed" if unmade else "pred_masks"
        predicted = torch.stack([layer[key][image] for layer in group]).float()
        if unmade:
            sampled = sample_features(features, points.flatten(0, 1)).unflatten(0, points.shape[:2])  # (n, P, C)
            yield predicted @ sampled.mT
        else:
            yield point_sample(predicted, points, align_corners=False)


def pairwise_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean binary cross entropy over points: (..., Q, P) logits and (..., G, P) truth to (..., Q, G)."""
    # -t log p - (1 - t) log(1 - p) = -log(1 - p) - t x
    return (-F.logsigmoid(-logits).sum(-1, keepdim=True) - logits @ truth.mT) / logits.shape[-1]


def pairwise_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss over points, smoothed by 1: (..., Q, P) logits and (..., G, P) truth to (..., Q, G)."""
    probs = logits.sigmoid()
    total = probs.sum(-1)[..., None] + truth.sum(-1)[..., None, :]
    return 1 - (2 * (probs @ truth.mT) + 1) / (total + 1)


def _to_device(pairs: list[list[tuple[Any, Any]]], device: torch.device) -> list[list[Match]]:
    """The index arrays as tensors on the device, moved in one piece."""
    flat = [torch.as_tensor(index) for layer in pairs for pair in layer for index in pair]
    moved = iter(torch.cat(flat).to(device, non_blocking=True).split([len(index) for index in flat]))
    return [[(next(moved), next(moved)) for _ in layer] for layer in pairs]
