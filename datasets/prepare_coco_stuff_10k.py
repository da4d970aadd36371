"""Make COCO-Stuff 10k's images and labels: coco/coco_stuff_10k/{images,annotations}_detectron2/{train,test}.

    python datasets/prepare_coco_stuff_10k.py [--check] [--jobs N] [--datasets FOLDER]

Release 1.1 has Matlab files whose "S" is 0 (unlabelled) or one of 171 ids up to 182. Here the label is the id's
position in the list, and 255 is ignored; images are linked to, not copied.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from _runner import Item, Step, label_step, labels_within, main, need, same_size

from mask2former.data.datasets.register_coco_stuff_10k import COCO_STUFF_10K_CATEGORIES

CLASS_OF_ID = np.full(183, 255, np.uint8)
CLASS_OF_ID[[row["id"] for row in COCO_STUFF_10K_CATEGORIES]] = np.arange(len(COCO_STUFF_10K_CATEGORIES))
KNOWN = [0, *(row["id"] for row in COCO_STUFF_10K_CATEGORIES)]


def training_labels(item: Item) -> np.ndarray:
    """(H, W) uint8."""
    source = item.inputs["labels"]
    try:
        labels = scipy.io.loadmat(source, variable_names=["S"])["S"]
    except (KeyError, ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"{source} cannot be read ({error!r}): download it again.") from error
    same_size(labels, source, item.inputs["image"])
    labels_within(labels, source, KNOWN)
    return CLASS_OF_ID[labels]


def plan(root: Path) -> list[Step]:
    stuff = root / "coco" / "coco_stuff_10k"
    steps = []
    for split in ("train", "test"):
        names_file = stuff / "imageLists" / f"{split}.txt"
        need(names_file, stuff / "images", stuff / "annotations")
        items, problems = [], []
        for name in names_file.read_text().split():
            image, labels = stuff / "images" / f"{name}.jpg", stuff / "annotations" / f"{name}.mat"
            missing = [path for path in (image, labels) if not path.exists()]
            if missing:
                problems.append(f"{names_file} lists {name}, but there is no {missing[0]}: download again.")
                continue
            link = stuff / "images_detectron2" / split / image.name
            target = stuff / "annotations_detectron2" / split / f"{name}.png"
            items.append(Item(name, {"image": image, "labels": labels}, target, link=link))
        steps.append(label_step(f"COCO-Stuff 10k, {split}", items, training_labels, problems))
    return steps


def run(arguments: Sequence[str] | None = None) -> int:
    return main(__doc__, plan, arguments)


if __name__ == "__main__":
    sys.exit(run())
