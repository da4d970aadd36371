"""Semantic segmentation averaged over several sizes of an image and its mirror images.

K classes, H W size of the original image.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn

# Results of the model that are not wanted here, and the form of the one that is.
_SCORES_ONLY = {"semantic_on": True, "panoptic_on": False, "instance_on": False, "semantic_label_map": False}


class SemanticSegmentorWithTTA(nn.Module):
    """A semantic segmentation model, run on several versions of each image (TEST.AUG).

    Scores are added up as they come, so memory is that of two results, however many versions there are.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
        batch_size: int = 1,
    ) -> None:
        """
        Args:
            model: gives "sem_seg" for each image; with several tasks on, only this one is computed.
            tta_mapper: the versions of an image, by default of the sizes and flips in TEST.AUG.
            batch_size: how many versions run at once.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least one version has to run at once")
        self.cfg = cfg.clone()
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.tta_mapper = tta_mapper if tta_mapper is not None else DatasetMapperTTA(cfg)
        self.batch_size = batch_size

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Args:
            batched_inputs: one dict per image, with "image" (3, h, w) and the original "height" and "width"; or with
                only "file_name".

        Returns:
            for each image {"sem_seg": (K, H, W)}, the mean over its versions.
        """
        with scores_only(self.model):
            return [{"sem_seg": self._mean_scores(self._complete(sample))} for sample in batched_inputs]

    def _complete(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample with image and original size."""
        sample = copy.copy(sample)
        if "image" not in sample:
            pixels = read_image(sample["file_name"], self.cfg.INPUT.FORMAT)
            sample["image"] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        sample.setdefault("height", sample["image"].shape[1])
        sample.setdefault("width", sample["image"].shape[2])
        return sample

    def _mean_scores(self, sample: dict[str, Any]) -> Tensor:
        versions = self.tta_mapper(sample)
        if not versions:
            raise ValueError("no versions of the image to run on: TEST.AUG.MIN_SIZES is empty")
        total: Any = None
        for start in range(0, len(versions), self.batch_size):
            batch = versions[start : start + self.batch_size]
            mirrored = [_is_mirrored(version.pop("transforms")) for version in batch]
            for flip, output in zip(mirrored, self.model(batch), strict=True):
                total = _added(total, output, flip)
        return total / len(versions)


def _added(total: Tensor | None, output: dict[str, Tensor], mirrored: bool) -> Tensor:
    """The total with one more result, which is taken out of `output` so that it does not outlive its turn."""
    scores = output.pop("sem_seg")
    scores = scores.flip(-1) if mirrored else scores
    return scores if total is None else total.add_(scores)


def _is_mirrored(transforms: Any) -> bool:
    return any(isinstance(transform, HFlipTransform) for transform in transforms.transforms)


@contextmanager
def scores_only(model: nn.Module) -> Iterator[None]:
    """Let the model give semantic scores and nothing else, for a while. Switches that it lacks are left alone."""
    before = {name: getattr(model, name) for name in _SCORES_ONLY if hasattr(model, name)}
    try:
        for name in before:
            setattr(model, name, _SCORES_ONLY[name])
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
