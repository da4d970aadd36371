"""The large-scale-jitter mapper, against drawing every polygon on the whole upscaled image and cutting afterwards.

python benchmarks/mapper.py
"""

import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import CONFIGS, ROOT, alternate, arguments, configuration, image, report
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import polygons_to_bitmask

from mask2former.data.mappers import COCOInstanceNewBaselineDatasetMapper

IMAGES = 20


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    mapper = COCOInstanceNewBaselineDatasetMapper(configuration(ROOT / "configs" / CONFIGS["r50"]), True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.jpg"
        cv2.imwrite(str(file), image(480, 640).permute(1, 2, 0).numpy())
        sample = {"file_name": str(file), "height": 480, "width": 640, "annotations": annotations(20)}

        def run(function: Any) -> list[Any]:
            np.random.seed(0)
            return [function(sample) for _ in range(IMAGES)]

        sides = {"upscaled": lambda: run(lambda x: upscaled(mapper, x)), "ours": lambda: run(mapper)}
        different = total = 0
        for ours, theirs in zip(sides["ours"](), sides["upscaled"](), strict=True):
            masks = theirs[theirs.flatten(1).any(1)]
            if len(masks) == len(ours["instances"]):
                different += int((masks != ours["instances"].gt_masks.bool()).sum())
                total += int(masks.sum())
        measured = alternate(sides, args.repeats)
    rows = [
        {
            "side": name,
            "images/s and core": IMAGES / times["cpu"],
            "times faster": measured["upscaled"]["cpu"] / times["cpu"],
        }
        for name, times in measured.items()
    ]
    report(f"640x480, 20 polygons; {different} of {total} pixels of masks differ", rows, args.json)


def annotations(count: int) -> list[dict[str, Any]]:
    """Stars of 40 corners."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    result = []
    for n in range(count):
        radius = rng.uniform(15, 90) * rng.uniform(0.7, 1.2, 40)
        x = np.clip(rng.uniform(60, 580) + radius * np.cos(angle), 0, 640)
        y = np.clip(rng.uniform(60, 420) + radius * np.sin(angle), 0, 480)
        polygon = np.stack([x, y], 1).ravel().tolist()
        result.append({"bbox": [0, 0, 9, 9], "bbox_mode": 1, "category_id": n, "segmentation": [polygon], "iscrowd": 0})
    return result


def upscaled(mapper: Any, sample: dict[str, Any]) -> torch.Tensor:
    """Masks (G, H, W): each drawn at the size of the resized image, then cut and padded to the window."""
    picture = utils.read_image(sample["file_name"], "RGB")
    _, transforms = T.apply_transform_gens(mapper.augmentations, picture)
    steps = transforms.transforms
    resize = next(i for i, step in enumerate(steps) if hasattr(step, "new_h"))
    height, width = steps[resize].new_h, steps[resize].new_w
    masks = []
    for annotation in sample["annotations"]:
        polygons = [np.asarray(polygon).reshape(-1, 2) for polygon in annotation["segmentation"]]
        for step in steps[: resize + 1]:
            polygons = step.apply_polygons(polygons)
        mask = polygons_to_bitmask([polygon.reshape(-1) for polygon in polygons], height, width).astype(np.uint8)
        for step in steps[resize + 1 :]:
            mask = step.apply_segmentation(mask)
        masks.append(mask == 1)
    return torch.from_numpy(np.stack(masks))


if __name__ == "__main__":
    main()
