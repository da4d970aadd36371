"""Images with labels, put through the training mappers under fixed random states, for any implementation of them."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_utils

import mask2former
from mask2former import add_maskformer2_config

ROOT = Path(__file__).parents[2]
CROPS = [
    "INPUT.MIN_SIZE_TRAIN", [40, 56, 72, 90],
    "INPUT.MAX_SIZE_TRAIN", 150,
    "INPUT.CROP.SIZE", [48, 60],
    "INPUT.SIZE_DIVISIBILITY", 64,
]  # fmt: skip
JITTER = ["INPUT.IMAGE_SIZE", 96]
# Mapper, config, options.
MAPPERS = {
    "semantic": (
        "MaskFormerSemanticDatasetMapper",
        "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
        CROPS,
    ),
    "panoptic": (
        "MaskFormerPanopticDatasetMapper",
        "ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k.yaml",
        CROPS,
    ),
    "instance": (
        "MaskFormerInstanceDatasetMapper",
        "ade20k/instance-segmentation/maskformer2_R50_bs16_160k.yaml",
        CROPS,
    ),
    "instance_lsj": (
        "COCOInstanceNewBaselineDatasetMapper",
        "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
        JITTER,
    ),
    "panoptic_lsj": (
        "COCOPanopticNewBaselineDatasetMapper",
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        JITTER,
    ),
}
SIZES = ((71, 99), (120, 64), (64, 64))


def make(folder: Path, mapper: str) -> list[dict[str, Any]]:
    """Dataset dicts of three images with four objects each, files written to the folder."""
    records = []
    for number, (height, width) in enumerate(SIZES):
        rng = np.random.RandomState(number)
        yy, xx = np.mgrid[0:height, 0:width]
        smooth = [120 + 90 * np.sin(xx / (7 + 3 * c)) * np.cos(yy / (11 - 2 * c)) for c in range(3)]
        pixels = np.clip(np.stack(smooth, -1) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
        image = folder / f"{number}.png"
        Image.fromarray(pixels).save(image)
        record = {"file_name": str(image), "height": height, "width": width, "image_id": number}
        labels = np.full((height, width), 255, dtype=np.uint8)
        ids = np.zeros((height, width), dtype=np.int64)
        segments, annotations = [], []
        for k in range(4):
            y, x, a, b = rng.rand(4) * (height, width, height / 3, width / 3) + (0, 0, 5, 5)
            mask = ((yy - y) / a) ** 2 + ((xx - x) / b) ** 2 < 1
            class_id, segment_id = int(rng.randint(0, 80)), int(rng.randint(1, 256**3 - 1))
            labels[mask], ids[mask] = class_id, segment_id
            segments.append({"id": segment_id, "category_id": class_id, "iscrowd": int(k == 1 and number == 1)})
            around = np.linspace(0, 2 * np.pi, 13)[:-1]
            polygon = np.stack([x + b * np.cos(around), y + a * np.sin(around)], 1).clip(0, [width, height])
            annotations.append(
                {
                    "bbox": [float(x - b), float(y - a), float(2 * b), float(2 * a)],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": class_id,
                    "iscrowd": int(k == 3 and number == 0),
                    "segmentation": [polygon.flatten().tolist()],
                }
            )
            if k == 2 and mapper == "instance":  # the other one takes polygons alone
                run_length = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations[-1]["segmentation"] = run_length
        segments = [segment for segment in segments if (ids == segment["id"]).any()]
        if mapper in ("semantic", "panoptic"):
            Image.fromarray(labels).save(folder / f"{number}_labels.png")
            record["sem_seg_file_name"] = str(folder / f"{number}_labels.png")
        if mapper.startswith("panoptic"):
            rgb = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1).astype(np.uint8)
            Image.fromarray(rgb).save(folder / f"{number}_ids.png")
            record |= {"pan_seg_file_name": str(folder / f"{number}_ids.png"), "segments_info": segments}
        if mapper.startswith("instance"):
            record["annotations"] = annotations
        records.append(record)
    return records


def mapped(folder: Path, mapper: str, configs: Path = ROOT / "configs", repeats: int = 4) -> dict[str, np.ndarray]:
    """What the mapper makes of the three images, each several times."""
    name, config, options = MAPPERS[mapper]
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(configs / config))
    cfg.merge_from_list(options)
    call = getattr(mask2former, name)(cfg, True)
    records = make(folder, mapper)
    arrays = {}
    for state in range(repeats * len(records)):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        out = call(records[state % len(records)])
        instances = out["instances"]
        arrays[f"{mapper}/{state}/image"] = out["image"].numpy()
        arrays[f"{mapper}/{state}/size"] = np.array(instances.image_size)
        arrays[f"{mapper}/{state}/classes"] = instances.gt_classes.numpy()
        arrays[f"{mapper}/{state}/masks"] = instances.gt_masks.numpy().astype(bool)
        if instances.has("gt_boxes"):
            arrays[f"{mapper}/{state}/boxes"] = instances.gt_boxes.tensor.numpy()
        for key in ("sem_seg", "padding_mask"):
            if key in out:
                arrays[f"{mapper}/{state}/{key}"] = out[key].numpy()
        arrays[f"{mapper}/{state}/drawn"] = np.array([np.random.rand(), random.random()])  # how much was drawn
    return arrays
