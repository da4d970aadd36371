"""What one decoder layer predicts, with mask logits made only when asked for.

B images, Q queries, K classes, C channels, H W size of the mask features.
"""

import torch
from torch import Tensor


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
        self["pred_masks"] = torch.einsum("bqc,bchw->bqhw", self["mask_embed"], self["mask_features"])
