"""Make semantic labels of COCO from its panoptic ones: coco/panoptic_semseg_{train,val}2017.

    python datasets/prepare_coco_semantic_annos_from_panoptic_annos.py

Reads coco/annotations/panoptic_*2017.json and coco/panoptic_*2017 in the folder DETECTRON2_DATASETS (default:
datasets). A pixel becomes the position of its class in COCO's list of 133; 255 where nothing is labelled. Started
again after a break, it goes on with the images that are missing.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from panopticapi.utils import rgb2id
from PIL import Image
from tqdm import tqdm

IGNORE = 255


def semantic_map(ids: np.ndarray, segments: list[dict], position: dict[int, int]) -> np.ndarray:
    """The (H, W) uint8 classes of (H, W) segment ids; KeyError for a pixel or a class that is not listed."""
    class_of = {0: IGNORE, **{segment["id"]: position[segment["category_id"]] for segment in segments}}
    present, inverse = np.unique(ids, return_inverse=True)
    return np.array([class_of[id_] for id_ in present.tolist()], np.uint8)[inverse.reshape(ids.shape)]


def convert(panoptic_json: Path, panoptic_root: Path, semantic_root: Path) -> int:
    """Write the semantic PNG of every image in the json; returns how many were missing."""
    position = {row["id"]: index for index, row in enumerate(COCO_CATEGORIES)}
    annotations = json.loads(panoptic_json.read_text())["annotations"]
    semantic_root.mkdir(parents=True, exist_ok=True)
    missing = [anno for anno in annotations if not (semantic_root / anno["file_name"]).exists()]
    for anno in tqdm(missing, desc=semantic_root.name, unit="image", disable=None):
        with Image.open(panoptic_root / anno["file_name"]) as image:
            ids = rgb2id(np.asarray(image.convert("RGB")))
        target = semantic_root / anno["file_name"]
        partial = target.with_suffix(".partial")
        Image.fromarray(semantic_map(ids, anno["segments_info"], position)).save(partial, format="png")
        partial.replace(target)
    return len(missing)


def main() -> int:
    coco = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))) / "coco"
    for split in ("val2017", "train2017"):
        panoptic_json, panoptic_root = coco / "annotations" / f"panoptic_{split}.json", coco / f"panoptic_{split}"
        for needed in (panoptic_json, panoptic_root):
            if not needed.exists():
                print(
                    f"{needed} does not exist. DETECTRON2_DATASETS names the folder that holds coco.", file=sys.stderr
                )
                return 1
        count = convert(panoptic_json, panoptic_root, coco / f"panoptic_semseg_{split}")
        print(f"{coco / f'panoptic_semseg_{split}'}: {count} files written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
