"""What one decoder layer predicts, with mask logits made only when asked for.

B images, Q queries, K classes, C channels, H W size of the mask features.
"""

import torch
from torch import Tensor

from ..packed_linear import is_ordinary


class Prediction(dict):
    """ "pred_logits" (B, Q, K+1; absent without classes), "mask_embed" (B, Q, C), "mask_features" (B, C, H, W).

    `prediction["pred_masks"]` (B, Q, H, W) is their product, computed at the first access: inference needs it of the
    last layer alone, and training only of matched queries, or at points. "mask_bias" (B, Q, 1) is added to it; there is
    none in training.
    """

    def __missing__(self, key: str) -> Tensor:
        if key != "pred_masks":
            raise KeyError(key)
        self.make_masks()
        return self[key]

    def make_masks(self) -> None:
        """Compute "pred_masks" now."""
        features = self["mask_features"]
        self["pred_masks"] = self.logits(features.flatten(2)).unflatten(2, features.shape[2:])

    def logits(self, mask_features: Tensor) -> Tensor:
        """Mask logits (B, Q, S) at pixels (B, C, S): inner products of queries and pixels."""
        queries, bias = self["mask_embed"], self.get("mask_bias")
        if len(mask_features) == 1 and is_ordinary(mask_features):
            # A product of a batch would copy features that keep their channels last.
            product = torch.mm(queries[0], mask_features[0])[None]
        else:
            product = queries @ mask_features
        return product if bias is None else product.add_(bias)
