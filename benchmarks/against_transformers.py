"""Hugging Face transformers' Mask2Former with our weights, its image processor and its post-processing."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import CONFIGS, ROOT, build, configuration
from torch import Tensor


class Transformers:
    """Their model and processor, called as a user would, for one image."""

    def __init__(self, config: str, sample: dict[str, Any]) -> None:
        weights = build(config).state_dict()
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

        from mask2former.checkpoint.convert import to_hub

        path = ROOT / "configs" / CONFIGS[config] if config in CONFIGS else Path(config)
        cfg = configuration(path)
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"model": weights}, Path(folder) / "model.pth")
            to_hub(str(Path(folder) / "model.pth"), Path(folder) / "hub", cfg)
            self.model = Mask2FormerForUniversalSegmentation.from_pretrained(Path(folder) / "hub").eval()
        # Theirs takes RGB; ours what the config reads.
        self.reverse = cfg.INPUT.FORMAT == "BGR"
        self.processor = Mask2FormerImageProcessor(do_resize=False, size_divisor=32)
        self.sample = sample

    def run(self) -> dict[str, Any]:
        """Their instances, after their post-processing."""
        return self.instances(self.predictions())

    @torch.inference_mode()
    def predictions(self) -> Any:
        """Their model's output for the image (3, H, W) uint8."""
        image = self.sample["image"]
        image = image.flip(0) if self.reverse else image
        inputs = self.processor(images=[image.permute(1, 2, 0).numpy()], return_tensors="pt")
        return self.model(pixel_values=inputs["pixel_values"])

    @torch.inference_mode()
    def instances(self, outputs: Any) -> dict[str, Any]:
        size = (self.sample["height"], self.sample["width"])
        return self.processor.post_process_instance_segmentation(outputs, threshold=0.0, target_sizes=[size])[0]

    def results(self) -> dict[str, Tensor]:
        """Classes and masks of the last layer under our names, and the instances' scores from high to low."""
        outputs = self.predictions()
        scores = torch.tensor([segment["score"] for segment in self.instances(outputs)["segments_info"]])
        return {
            "pred_logits": outputs.class_queries_logits,
            "pred_masks": outputs.masks_queries_logits,
            "scores": scores.sort(descending=True)[0],
        }


def apart(logits: dict[str, Tensor], scores: Tensor, theirs: dict[str, Tensor]) -> str:
    """How far we are from their `results`: raw outputs, and the scores, which they compute on smaller masks.

    Raises:
        ValueError: logits differ by more than a ten-thousandth of the largest.
    """
    pairs = {
        "class logits": (logits["pred_logits"], theirs["pred_logits"]),
        "mask logits": (logits["pred_masks"], theirs["pred_masks"]),
    }
    differences = {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}
    if max(differences.values()) > 1e-4:
        raise ValueError(f"transformers' model predicts something else: {differences} of the largest logit")
    differences["scores"] = float((theirs["scores"] - scores[: len(theirs["scores"])]).abs().max())
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
