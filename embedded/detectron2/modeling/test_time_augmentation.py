"""One image in, several resized and flipped versions of it out."""

import copy
from typing import Any

import numpy as np
import torch
from fvcore.transforms.transform import NoOpTransform

from detectron2.config import configurable
from detectron2.data.transforms import RandomFlip, ResizeShortestEdge, ResizeTransform, apply_augmentations


class DatasetMapperTTA:
    """Make the versions of an image that test-time augmentation runs the model on.

    Args:
        min_sizes: shorter sides to resize to.
        max_size: bound on the longer side.
        flip: whether each size also comes mirrored.
    """

    @configurable
    def __init__(self, min_sizes: list[int], max_size: int, flip: bool) -> None:
        self.min_sizes = min_sizes
        self.max_size = max_size
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        aug = cfg.TEST.AUG
        return {"min_sizes": aug.MIN_SIZES, "max_size": aug.MAX_SIZE, "flip": aug.FLIP}

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """Args:
            dataset_dict: a mapped image: `image` (C, H, W), and `height`, `width` of the original.

        Returns:
            a copy of it for every version, with the version's `image` and the `transforms` that lead there from the
            original image. Size by size; the mirrored one follows the plain one.
        """
        image = dataset_dict["image"].permute(1, 2, 0).numpy()  # (H, W, C)
        shape = image.shape[:2]
        original = (dataset_dict["height"], dataset_dict["width"])
        to_input = NoOpTransform() if shape == original else ResizeTransform(*original, *shape)

        versions = []
        for size in self.min_sizes:
            resize = ResizeShortestEdge(size, self.max_size)
            for augmentations in ([resize], [resize, RandomFlip(prob=1.0)])[: 1 + self.flip]:
                version_image, transforms = apply_augmentations(augmentations, np.copy(image))
                version = copy.deepcopy({k: v for k, v in dataset_dict.items() if k != "image"})
                version["image"] = torch.from_numpy(np.ascontiguousarray(version_image.transpose(2, 0, 1)))
                version["transforms"] = to_input + transforms
                versions.append(version)
        return versions
