"""A plain semantic segmenter, backbone and head, and the registry of heads."""

from typing import Any

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = """
Heads by the name in MODEL.SEM_SEG_HEAD.NAME: `(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module`.
"""


def build_sem_seg_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the head MODEL.SEM_SEG_HEAD.NAME on a backbone of that `output_shape()`."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(nn.Module):
    """Backbone and per-pixel head.

    Args:
        sem_seg_head: called as `head(features, targets)`, returns (scores, losses).
        pixel_mean, pixel_std: one value for each channel of the image, in its channel order.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self, *, backbone: Backbone, sem_seg_head: nn.Module, pixel_mean: list[float], pixel_std: list[float]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Args:
            batched_inputs: `image` (C, H, W); in training `sem_seg` (H, W) labels; for the size of the result `height`
                and `width`.

        Returns:
            the losses in training, else for each image `sem_seg` (K, height, width) scores.
        """
        images = self._batch(
            [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs], 0.0
        )
        targets = None
        if "sem_seg" in batched_inputs[0]:
            ignored = getattr(self.sem_seg_head, "ignore_value", 255)
            targets = self._batch([x["sem_seg"].to(self.device) for x in batched_inputs], ignored).tensor
        scores, losses = self.sem_seg_head(self.backbone(images.tensor), targets)
        if self.training:
            return losses
        return [
            {"sem_seg": sem_seg_postprocess(one, size, x.get("height", size[0]), x.get("width", size[1]))}
            for one, size, x in zip(scores, images.image_sizes, batched_inputs)
        ]

    def _batch(self, tensors: list[Tensor], pad_value: float) -> ImageList:
        backbone = self.backbone
        return ImageList.from_tensors(
            tensors, backbone.size_divisibility, pad_value, padding_constraints=backbone.padding_constraints
        )
