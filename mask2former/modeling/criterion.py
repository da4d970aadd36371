"""Losses of a set of predictions (paper, section 3.3), after every decoder layer.

B images, Q queries, K classes, G segments of an image, M matched pairs of the batch, P points, H W size of masks.
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
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            matches = self.matcher.match_layers(layers, targets)
            num_masks = self._num_masks(targets)
            losses = {}
            masks = matched_masks(layers, matches) if "masks" in self.losses else []
            for i, (layer, match) in enumerate(zip(layers, matches, strict=True)):
                suffix = f"_{i - 1}" if i else ""
                if "labels" in self.losses:
                    losses["loss_ce" + suffix] = self._class_loss(layer["pred_logits"].float(), targets, match)
                if "masks" in self.losses:
                    mask_loss, dice = self._mask_losses(masks[i], targets, match, num_masks)
                    losses |= {"loss_mask" + suffix: mask_loss, "loss_dice" + suffix: dice}
        return losses

    def _num_masks(self, targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """Segments per process, averaged over all processes, at least 1: every process divides by the same number."""
        count = torch.tensor(float(sum(len(target["labels"]) for target in targets)), device=self.empty_weight.device)
        if (world_size := comm.get_world_size()) > 1:
            torch.distributed.all_reduce(count)
            count = count / world_size
        return count.clamp(min=1)

    def _class_loss(self, logits: Tensor, targets: Sequence[dict[str, Tensor]], match: list[Match]) -> Tensor:
        """Weighted cross entropy over all queries; those without a segment are "no object"."""
        classes = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)  # (B, Q)
        for b, (queries, segments) in enumerate(match):
            classes[b, queries] = targets[b]["labels"][segments]
        return F.cross_entropy(logits.transpose(1, 2), classes, self.empty_weight)

    def _mask_losses(
        self, matched: Tensor, targets: Sequence[dict[str, Tensor]], match: list[Match], num_masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy and dice of the (M, H, W) matched masks at points; 0, with gradients, where M is 0."""
        points = uncertain_points(
            matched, self.num_points, self.oversample_ratio, self.importance_sample_ratio
        )  # (M, P, 2)
        per_image = points.split([len(queries) for queries, _ in match])
        truth = torch.cat(
            [
                sample_masks(target["masks"][segments], image_points)
                for target, (_, segments), image_points in zip(targets, match, per_image, strict=True)
            ]
        )  # (M, P)
        logits = point_sample(matched[:, None], points, align_corners=False).squeeze(1)  # (M, P)
        return sigmoid_cross_entropy_loss(logits, truth, num_masks), dice_loss(logits, truth, num_masks)


def matched_masks(layers: Sequence[dict[str, Any]], matches: Sequence[list[Match]]) -> list[Tensor]:
    """Mask logits of the matched queries, for each layer image by image: (M, H, W) float32.

    Of `Prediction`s no other masks are made, so that none is kept for the backward pass either.
    """
    if "mask_embed" not in layers[0]:
        return [
            torch.cat([layer["pred_masks"][b, queries] for b, (queries, _) in enumerate(match)]).float()
            for layer, match in zip(layers, matches, strict=True)
        ]
    by_image = []
    # One product per image for all layers: the features' gradient is then summed inside it, not layer by layer.
    for b, features in enumerate(layers[0]["mask_features"].unbind()):
        queries = [match[b][0] for match in matches]
        embedded = [layer["mask_embed"][b, index] for layer, index in zip(layers, queries, strict=True)]
        masks = torch.einsum("mc,chw->mhw", torch.cat(embedded).to(features.dtype), features)
        by_image.append(masks.float().split([len(index) for index in queries]))
    return [torch.cat(layer) for layer in zip(*by_image, strict=True)]


def sigmoid_cross_entropy_loss(logits: Tensor, truth: Tensor, num_masks: Tensor | float) -> Tensor:
    """Binary cross entropy: mean over the points of each mask, summed over masks, divided by num_masks; (M, P)."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1).sum() / num_masks


def dice_loss(logits: Tensor, truth: Tensor, num_masks: Tensor | float) -> Tensor:
    """1 - dice, smoothed by 1, over the points of each mask, summed over masks, divided by num_masks; (M, P)."""
    probs = logits.sigmoid()
    overlap = 2 * (probs * truth).sum(-1)
    return (1 - (overlap + 1) / (probs.sum(-1) + truth.sum(-1) + 1)).sum() / num_masks
