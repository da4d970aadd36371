"""Make the 847-class labels of the full ADE20K: ADE20K_2021_17_01/{images,annotations}_detectron2.

    python datasets/prepare_ade20k_full_sem_seg.py [--check] [--jobs N] [--datasets FOLDER]

In images/ADE/**/*_seg.png the number of a pixel's class is 256 * (R // 10) + G. Labels are 16-bit TIFF files, in which
65535 is ignored; images are linked to, not copied.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _runner import Item, Step, label_step, main, need, read_image, same_size

from mask2former.data.datasets.register_ade20k import ADE20K_FULL_CATEGORIES

IGNORE = 65535
NUMBERS = 256 * 26  # what R // 10 and G can say
CLASS_OF_NUMBER = np.full(NUMBERS, IGNORE, np.uint16)
CLASS_OF_NUMBER[[row["id"] for row in ADE20K_FULL_CATEGORIES]] = np.arange(len(ADE20K_FULL_CATEGORIES))


def training_labels(item: Item) -> np.ndarray:
    """(H, W) uint16."""
    source = item.inputs["labels"]
    pixels = read_image(source, "RGB").astype(int)
    same_size(pixels, source, item.inputs["image"])
    return CLASS_OF_NUMBER[pixels[..., 0] // 10 * 256 + pixels[..., 1]]


def plan(root: Path) -> list[Step]:
    ade = root / "ADE20K_2021_17_01"
    steps = []
    for split in ("training", "validation"):
        source = ade / "images" / "ADE" / split
        need(source)
        items, problems = [], []
        for image in sorted(source.rglob("*.jpg")):
            labels = image.with_name(f"{image.stem}_seg.png")
            if not labels.exists():
                problems.append(f"{image} has no {labels.name}: download again.")
                continue
            link = ade / "images_detectron2" / split / image.name
            target = ade / "annotations_detectron2" / split / f"{image.stem}.tif"
            items.append(Item(image.stem, {"image": image, "labels": labels}, target, link=link))
        if not items:
            problems.append(f"No images in {source}.")
        steps.append(label_step(f"ADE20K full, {split}", items, training_labels, problems))
    return steps


def run(arguments: Sequence[str] | None = None) -> int:
    return main(__doc__, plan, arguments)


if __name__ == "__main__":
    sys.exit(run())
