"""What one decoder layer predicts, with mask logits made only when asked for.

B images, Q queries, K classes, C channels, H W size of the mask features.
"""

import torch
from torch import Tensor

from ..packed_linear import is_ordinary


class Prediction(dict):
    """ "pred_logits" (B, Q, K+1; absent without classes), "mask_embed" (B, Q, C), "mask_features" (B, C, H, W).

    `prediction["pred_masks"]` (B, Q, H, W) is their product, computed at the first access: inference needs it of the
    last layer alone, and training only of matched queries, or at points.
    """

    def __missing__(self, key: str) -> Tensor:
        if key != "pred_masks":
            raise KeyError(key)
        self.make_masks()
        return self[key]

    def make_masks(self) -> None:
        """Compute "pred_masks" now."""
        features = self["mask_features"]
        self["pred_masks"] = mask_logits(self["mask_embed"], features.flatten(2)).unflatten(2, features.shape[2:])


def mask_logits(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """Inner products of queries (B, Q, C) and pixels (B, C, S): (B, Q, S)."""
    if len(mask_features) == 1 and is_ordinary(mask_features):
        # A product of a batch would copy features that keep their channels last.
        return torch.mm(mask_embeddings[0], mask_features[0])[None]
    return mask_embeddings @ mask_features
