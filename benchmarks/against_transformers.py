"""Hugging Face transformers' Mask2Former with our weights, its image processor and its post-processing."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import CONFIGS, ROOT, configuration


class Transformers:
    """Their model and processor, called as a user would."""

    def __init__(self, model: Any, config: str) -> None:
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

        from mask2former.checkpoint.convert import to_hub

        path = ROOT / "configs" / CONFIGS[config] if config in CONFIGS else Path(config)
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"model": model.state_dict()}, Path(folder) / "model.pth")
            to_hub(str(Path(folder) / "model.pth"), Path(folder) / "hub", configuration(path))
            self.model = Mask2FormerForUniversalSegmentation.from_pretrained(Path(folder) / "hub").eval()
        self.processor = Mask2FormerImageProcessor(do_resize=False, size_divisor=32)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """One image to instances, and the raw outputs under the names of `MaskFormer.predictions`."""
        image = sample["image"].flip(0)  # RGB there
        inputs = self.processor(images=[image.permute(1, 2, 0).numpy()], return_tensors="pt")
        outputs = self.model(pixel_values=inputs["pixel_values"])
        size = (sample["height"], sample["width"])
        found = self.processor.post_process_instance_segmentation(outputs, threshold=0.0, target_sizes=[size])
        return {"found": found, "pred_logits": outputs.class_queries_logits}
