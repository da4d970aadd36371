"""Losses of a set of predictions (paper, section 3.3), after every decoder layer.

N layers, B images, Q queries, K classes, G segments of an image, M matched pairs of the batch (M_b of an image),
P points, H W size of masks.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from detectron2.utils import comm
from torch import Tensor, nn

from .matcher import HungarianMatcher, Match
from .points import sample_masks, uncertain_points


class SetCriterion(nn.Module):
    """Class, mask and dice losses between matched queries and segments.

    All in float32, whatever the precision of the model.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: dict[str, float],
        eos_coef: float,
        losses: Sequence[str],
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ) -> None:
        """
        Args:
            num_classes: K, without "no object".
            weight_dict: weight of each loss by name; whoever sums the losses applies it.
            eos_coef: weight of "no object" in the class loss.
            losses: "labels" and/or "masks".
            num_points: P per mask; the two ratios: see `uncertain_points`.
        """
        super().__init__()
        if unknown := set(losses) - {"labels", "masks"}:
            raise ValueError(f"Unknown losses {sorted(unknown)}; choose from labels, masks.")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.losses = losses
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)

    def forward(self, outputs: dict[str, Any], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Unweighted losses of all layers.

        Random numbers are drawn in this order: the matcher's points (see there), then each layer's loss points; the
        last layer comes first, then the "aux_outputs" in order.

        Args:
            outputs: "pred_logits" (B, Q, K+1), "pred_masks" (B, Q, H, W), optionally "aux_outputs": a list of such
                dicts, one per earlier layer. Of a `Prediction` only the masks that are needed are made.
            targets: B dicts of "labels" (G) int64 and "masks" (G, H', W') bool.

        Returns:
            "loss_ce", "loss_mask", "loss_dice", and each with suffix "_0", "_1" ... for the earlier layers.
        """
        layers = [outputs, *outputs.get("aux_outputs", [])]
        losses: dict[str, Tensor] = {}  # (N) each
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            matches = self.matcher.match_layers(layers, targets)
            # A segment is matched in every layer or, where queries are few, as many are: (N, M_b) of each image.
            by_image = [
                (torch.stack(queries), torch.stack(segments))
                for queries, segments in (zip(*image) for image in zip(*matches, strict=True))
            ]
            if "labels" in self.losses:
                logits = torch.stack([layer["pred_logits"] for layer in layers]).float()
                losses["loss_ce"] = self._class_losses(logits, targets, by_image)
            if "masks" in self.losses:
                masks = matched_masks(layers, [queries for queries, _ in by_image])
                segments = [segments for _, segments in by_image]
                losses["loss_mask"], losses["loss_dice"] = self._mask_losses(masks, targets, segments)
        suffixes = ["", *(f"_{i}" for i in range(len(layers) - 1))]
        by_layer = {name: loss.unbind() for name, loss in losses.items()}
        return {name + suffix: loss[i] for i, suffix in enumerate(suffixes) for name, loss in by_layer.items()}

    def _num_masks(self, targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """Segments per process, averaged over all processes, at least 1: every process divides by the same number."""
        # Filled on the device: a copy to it would make the host wait.
        segments = float(sum(len(target["labels"]) for target in targets))
        count = torch.full((), segments, device=self.empty_weight.device)
        if (world_size := comm.get_world_size()) > 1:
            torch.distributed.all_reduce(count)
            count = count / world_size
        return count.clamp(min=1)

    def _class_losses(self, logits: Tensor, targets: Sequence[dict[str, Tensor]], matches: Sequence[Match]) -> Tensor:
        """Weighted cross entropy over all queries; those without a segment are "no object".

        Args:
            logits: (N, B, Q, K+1).
            matches: (N, M_b) queries and segments of each image.

        Returns:
            (N).
        """
        classes = torch.full(logits.shape[:3], self.num_classes, dtype=torch.int64, device=logits.device)
        for b, (queries, segments) in enumerate(matches):
            classes[:, b].scatter_(1, queries, targets[b]["labels"][segments])
        losses = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), self.empty_weight, reduction="none")
        return losses.view(len(logits), -1).sum(1) / self.empty_weight[classes].flatten(1).sum(1)

    def _mask_losses(
        self, masks: Tensor, targets: Sequence[dict[str, Tensor]], segments: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy and dice of matched masks at points; 0, with gradients, where M is 0.

        Args:
            masks: (N, M, H, W) logits.
            segments: (N, M_b) of each image.

        Returns:
            (N) each.
        """
        # Layer by layer, as there are several candidates for each point.
        points = torch.stack(
            [
                uncertain_points(layer, self.num_points, self.oversample_ratio, self.importance_sample_ratio)
                for layer in masks.detach()
            ]
        )  # (N, M, P, 2)
        per_image = points.split([index.shape[1] for index in segments], 1)
        truth = torch.cat(
            [
                sample_masks(target["masks"], image_points.flatten(0, 1), index.flatten()).view(image_points.shape[:3])
                for target, index, image_points in zip(targets, segments, per_image, strict=True)
            ],
            1,
        )  # (N, M, P)
        logits = point_sample(masks.flatten(0, 1)[:, None], points.flatten(0, 1), align_corners=False).view_as(truth)
        num_masks = self._num_masks(targets)
        return sigmoid_cross_entropy_loss(logits, truth, num_masks), dice_loss(logits, truth, num_masks)


def matched_masks(layers: Sequence[dict[str, Any]], queries: Sequence[Tensor]) -> Tensor:
    """Mask logits of the matched queries, (N, M_b) of each image: (N, M, H, W) float32, image by image.

    Of `Prediction`s no other masks are made, so that none is kept for the backward pass either.
    """
    if "mask_embed" not in layers[0]:
        by_layer = zip(layers, zip(*queries, strict=True), strict=True)
        return torch.stack(
            [torch.cat([layer["pred_masks"][b, q] for b, q in enumerate(matched)]) for layer, matched in by_layer]
        ).float()
    features = layers[0]["mask_features"]
    embeds = torch.stack([layer["mask_embed"] for layer in layers], 1).to(features.dtype)  # (B, N, Q, C)
    # One product per image for all layers: the features' gradient is then summed inside it, not layer by layer.
    by_image = [
        torch.einsum("nmc,chw->nmhw", image_embeds.take_along_dim(index[..., None], 1), image_features)
        for image_embeds, index, image_features in zip(embeds.unbind(), queries, features.unbind(), strict=True)
    ]
    return torch.cat(by_image, 1).float()


def sigmoid_cross_entropy_loss(logits: Tensor, truth: Tensor, num_masks: Tensor | float) -> Tensor:
    """Binary cross entropy of (..., M, P), mean over points, summed over masks, divided by num_masks: (...)."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(-1).sum(-1) / num_masks


def dice_loss(logits: Tensor, truth: Tensor, num_masks: Tensor | float) -> Tensor:
    """1 - dice, smoothed by 1, over the points of (..., M, P), summed over masks, divided by num_masks: (...)."""
    probs = logits.sigmoid()
    overlap = 2 * (probs * truth).sum(-1)
    return (1 - (overlap + 1) / (probs.sum(-1) + truth.sum(-1) + 1)).sum(-1) / num_masks
