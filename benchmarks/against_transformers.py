"""Hugging Face transformers' Mask2Former with our weights, its image processor and its post-processing."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import CONFIGS, ROOT, configuration
from torch import Tensor


class Transformers:
    """Their model and processor, called as a user would."""

    def __init__(self, model: Any, config: str) -> None:
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

        from mask2former.checkpoint.convert import to_hub

        path = ROOT / "configs" / CONFIGS[config] if config in CONFIGS else Path(config)
        cfg = configuration(path)
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"model": model.state_dict()}, Path(folder) / "model.pth")
            to_hub(str(Path(folder) / "model.pth"), Path(folder) / "hub", cfg)
            self.model = Mask2FormerForUniversalSegmentation.from_pretrained(Path(folder) / "hub").eval()
        # Theirs takes RGB; ours what the config reads.
        self.reverse = cfg.INPUT.FORMAT == "BGR"
        self.processor = Mask2FormerImageProcessor(do_resize=False, size_divisor=32)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """One image to their instances, after their post-processing, and the raw outputs of the last layer."""
        outputs = self.predictions(sample["image"])
        size = (sample["height"], sample["width"])
        found = self.processor.post_process_instance_segmentation(outputs, threshold=0.0, target_sizes=[size])
        return {"found": found[0]}

    def agreement(self, model: Any, sample: dict[str, Any]) -> str:
        """How far `model` is from theirs: raw outputs, and the scores, which they compute on smaller masks.

        Raises:
            ValueError: logits differ by more than a ten-thousandth of the largest.
        """
        theirs = self.predictions(sample["image"])
        ours = model.predictions(model.normalized(sample)[None])
        pairs = {
            "class logits": (ours["pred_logits"], theirs.class_queries_logits),
            "mask logits": (ours["pred_masks"], theirs.masks_queries_logits),
        }
        apart = {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}
        if max(apart.values()) > 1e-4:
            raise ValueError(f"transformers' model predicts something else: {apart} of the largest logit")
        their_scores = torch.tensor([segment["score"] for segment in self(sample)["found"]["segments_info"]])
        our_scores = model([sample])[0]["instances"].scores.sort(descending=True)[0]
        scores = (their_scores.sort(descending=True)[0] - our_scores[: len(their_scores)]).abs().max()
        return ", ".join(f"{name} {value:.1e}" for name, value in (apart | {"scores": float(scores)}).items())

    def predictions(self, image: Tensor) -> Any:
        """Their model's output for an image (3, H, W) uint8."""
        image = image.flip(0) if self.reverse else image
        inputs = self.processor(images=[image.permute(1, 2, 0).numpy()], return_tensors="pt")
        return self.model(pixel_values=inputs["pixel_values"])
