"""Make ADE20K's panoptic segments: ADEChallengeData2016/ade20k_panoptic_{train,val}[.json].

    python datasets/prepare_ade20k_pan_seg.py [--check] [--jobs N] [--datasets FOLDER]

Stuff comes from annotations/, things from annotations_instance/ over it; the rest is void. The area of a segment is
what is left of it in the PNG. (Published files count what things cover as well, which no prediction can reach.)
"""

import sys
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from _runner import Item, Record, Step, labels_within, main, need, pair, read_image, same_size
from _segments import check_panoptic, extent, panoptic_json, panoptic_records, write_panoptic
from panopticapi.utils import IdGenerator, rgb2id
from prepare_ade20k_ins_seg import instance_masks

from mask2former.data.datasets.register_ade20k import ADE20K_150_CATEGORIES

CATEGORIES = {row["id"]: row for row in ADE20K_150_CATEGORIES}


def segment(item: Item) -> tuple[np.ndarray, list[dict]]:
    """(H, W) ids and the segments, the same at every call."""
    files = item.inputs
    labels = read_image(files["labels"], "L").astype(int)
    same_size(labels, files["labels"], files["image"])
    labels_within(labels, files["labels"], range(len(CATEGORIES) + 1))
    parts = [(c - 1, labels == c) for c in np.unique(labels[labels > 0]).tolist() if not CATEGORIES[c - 1]["isthing"]]
    instances = instance_masks(files["instances"])
    if instances:
        same_size(instances[0][1], files["instances"], files["image"])
    state = np.random.get_state()
    np.random.seed(zlib.crc32(item.name.encode()))  # the generator draws colours from numpy's global state
    generator = IdGenerator(CATEGORIES)
    ids = np.zeros(labels.shape, np.int64)
    category_of = {}
    for category, mask in [*parts, *instances]:
        id_ = generator.get_id(category)
        while id_ in category_of:  # "road" and "skyscraper" have one colour
            id_ += 1
        ids[mask] = id_
        category_of[id_] = category
    np.random.set_state(state)
    present = set(np.unique(ids).tolist())
    segments = [
        {"id": id_, "category_id": category, "iscrowd": 0, **extent(ids == id_)}
        for id_, category in category_of.items()
        if id_ in present
    ]
    return ids, segments


def convert(item: Item) -> Record:
    ids, segments = segment(item)
    return write_panoptic(item, ids, segments)


def check(item: Item, record: Record | None) -> None:
    ids = rgb2id(read_image(item.output, "RGB"))
    same_size(ids, item.output, item.inputs["image"])
    listed = record["annotation"]["segments_info"]
    check_panoptic(ids, listed, item.output, CATEGORIES)
    # Ids may be others than ours, if other software made the file; classes may not.
    expected, segments = segment(item)
    classes = [{s["id"]: s["category_id"] for s in some} | {0: -1} for some in (listed, segments)]
    maps = [np.vectorize(names.get, otypes=[int])(values) for names, values in zip(classes, (ids, expected))]
    if (maps[0] != maps[1]).any() or len(listed) != len(segments):
        raise ValueError(f"{item.output} is not what {item.inputs['labels']} and {item.inputs['instances']} give: "
                         "delete it and its json and run this script again.")  # fmt: skip


def plan(root: Path) -> list[Step]:
    ade = root / "ADEChallengeData2016"
    steps = []
    for split, folder in (("train", "training"), ("val", "validation")):
        images, labels, instances = (ade / p / folder for p in ("images", "annotations", "annotations_instance"))
        need(images, labels, instances)
        pairs, problems = pair(labels, instances, (".png", ".png"))
        target = ade / f"ade20k_panoptic_{split}"
        items = [
            Item(name, {"image": images / f"{name}.jpg", "labels": first, "instances": second}, target / first.name)
            for name, first, second in pairs
        ]
        steps.append(
            Step(
                f"ADE20K panoptic, {folder}",
                items,
                convert,
                check,
                ade / f"ade20k_panoptic_{split}.json",
                partial(panoptic_json, categories=ADE20K_150_CATEGORIES),
                panoptic_records,
                problems,
            )
        )
    return steps


def run(arguments: Sequence[str] | None = None) -> int:
    return main(__doc__, plan, arguments)


if __name__ == "__main__":
    sys.exit(run())
