"""From an image or a frame to predictions and their picture."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine.defaults import DefaultPredictor
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer

from mask2former.checkpoint import Mask2FormerCheckpointer
from mask2former.setup_config import report_settings_without_effect

# What a model may give, the richest first: name of the task, key among the predictions.
RESULTS = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}
# Images are drawn at least this wide or high, so that there is room for labels.
SMALLEST_SIDE = 400


class VisualizationDemo:
    """A model with its weights, and the way to draw what it finds.

    Args:
        cfg: configuration with MODEL.WEIGHTS.
        task: "panoptic", "instance" or "semantic": which result to draw; None: the richest that the model gives.
        confidence_threshold: instances, and panoptic segments that have a score, are dropped below it; None keeps all.
        instance_mode: how instances are coloured.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        task: str | None = None,
        confidence_threshold: float | None = None,
        instance_mode: ColorMode = ColorMode.IMAGE,
    ) -> None:
        report_settings_without_effect(cfg)
        self.metadata = MetadataCatalog.get(next(iter(cfg.DATASETS.TEST), "__unused"))
        self.task = task
        self.confidence_threshold = confidence_threshold
        self.instance_mode = instance_mode
        # detectron2's predictor reads fewer kinds of weights.
        bare = cfg.clone()
        bare.defrost()
        bare.MODEL.WEIGHTS = ""
        self.predictor = DefaultPredictor(bare)
        Mask2FormerCheckpointer(self.predictor.model).load(cfg.MODEL.WEIGHTS)

    def run_on_image(self, image: np.ndarray) -> tuple[dict[str, Any], VisImage]:
        """Predict and draw on a (H, W, 3) BGR image; a small image is drawn enlarged by a whole factor."""
        predictions = self.predict(image)
        scale = max(1, -(-SMALLEST_SIDE // max(image.shape[:2]))) if min(image.shape[:2]) >= 16 else 1
        visualizer = Visualizer(image[:, :, ::-1], self.metadata, scale=scale, instance_mode=self.instance_mode)
        task = self.drawn_task(predictions)
        if task == "panoptic":
            panoptic_seg, segments = predictions["panoptic_seg"]
            return predictions, visualizer.draw_panoptic_seg_predictions(panoptic_seg.cpu(), segments)
        if task == "instance":
            return predictions, visualizer.draw_instance_predictions(predictions["instances"].to("cpu"))
        return predictions, visualizer.draw_sem_seg(label_map(predictions["sem_seg"]))

    def run_on_video(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Predict and draw on (H, W, 3) BGR frames, one at a time; objects keep their colours. Yields BGR frames."""
        visualizer = VideoVisualizer(self.metadata, self.instance_mode)
        for frame in frames:
            predictions = self.predict(frame)
            rgb = np.ascontiguousarray(frame[:, :, ::-1])
            task = self.drawn_task(predictions)
            if task == "panoptic":
                panoptic_seg, segments = predictions["panoptic_seg"]
                picture = visualizer.draw_panoptic_seg_predictions(rgb, panoptic_seg.cpu(), segments)
            elif task == "instance":
                picture = visualizer.draw_instance_predictions(rgb, predictions["instances"].to("cpu"))
            else:
                picture = visualizer.draw_sem_seg(rgb, label_map(predictions["sem_seg"]))
            yield np.ascontiguousarray(picture.get_image()[:, :, ::-1])

    def predict(self, image: np.ndarray) -> dict[str, Any]:
        """What the model says about a BGR image, without what lies below the threshold."""
        predictions = dict(self.predictor(image))
        threshold = self.confidence_threshold
        if threshold is None:
            return predictions
        if "instances" in predictions:
            instances = predictions["instances"]
            predictions["instances"] = instances[instances.scores >= threshold]
        if "panoptic_seg" in predictions:
            panoptic_seg, segments = predictions["panoptic_seg"]
            # A segment without a score was kept by the model itself, by MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD.
            kept = [segment for segment in segments if segment.get("score", 1.0) >= threshold]
            panoptic_seg = panoptic_seg.clone()
            for segment in segments:
                if segment not in kept:
                    panoptic_seg[panoptic_seg == segment["id"]] = 0
            predictions["panoptic_seg"] = panoptic_seg, kept
        return predictions

    def drawn_task(self, predictions: dict[str, Any]) -> str:
        """The task asked for, or the richest among the predictions; ValueError where the model does not give it."""
        given = [task for task, key in RESULTS.items() if key in predictions]
        if (self.task is not None and self.task not in given) or not given:
            raise ValueError(
                f"the model gives {given or 'no result'}, not {self.task or 'one of ' + str(list(RESULTS))}"
            )
        return self.task or given[0]

    def is_empty(self, predictions: dict[str, Any]) -> bool:
        """Whether the result that is drawn holds no segment at all."""
        task = self.drawn_task(predictions)
        if task == "panoptic":
            return not predictions["panoptic_seg"][1]
        return task == "instance" and len(predictions["instances"]) == 0


def label_map(sem_seg: Any) -> Any:
    """(H, W) class numbers of (K, H, W) scores, or of what is a map already; on the CPU."""
    return (sem_seg.argmax(0) if sem_seg.ndim == 3 else sem_seg).cpu()
