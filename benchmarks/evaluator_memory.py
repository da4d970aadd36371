"""Peak memory of each evaluator over few and over many large images: it must not grow with their number.

What the libraries hold of the ground truth (COCO's annotations, panoptic segments) is measured apart.

python benchmarks/evaluator_memory.py                       # the table, 50 and 500 images of 1024x2048
python benchmarks/evaluator_memory.py --images 5 20 --evaluators SemSegEvaluator
"""

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cityscapesscripts.helpers.labels import trainId2label
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_util

from mask2former.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator, InstanceSegEvaluator

HEIGHT, WIDTH = 1024, 2048
CLASSES, THINGS, INSTANCES = 19, range(11, 19), 20
LABEL_IDS = np.array([trainId2label[c].id for c in range(CLASSES)])
NAME = "memory"

EVALUATORS = {
    "COCOEvaluator": lambda folder: COCOEvaluator(f"{NAME}_things", output_dir=folder),
    "InstanceSegEvaluator": lambda folder: InstanceSegEvaluator(NAME, output_dir=folder),
    "SemSegEvaluator": lambda folder: SemSegEvaluator(NAME),
    "SemSegEvaluator, writing": lambda folder: SemSegEvaluator(NAME, output_dir=folder),
    "COCOPanopticEvaluator": lambda folder: COCOPanopticEvaluator(NAME, folder),
    "CityscapesInstanceEvaluator": lambda folder: CityscapesInstanceEvaluator(NAME),
    "CityscapesSemSegEvaluator": lambda folder: CityscapesSemSegEvaluator(NAME),
}


def make_truth() -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """(H, W) classes with ragged borders, and masks and classes of the things among them."""
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    classes = ((xs + 20 * np.sin(ys / 9)) // 400).astype(np.int64) % 11
    masks, labels = [], []
    for i in range(INSTANCES):
        centre, radius = rng.random(2) * (HEIGHT, WIDTH), rng.integers(20, 150, 2)
        inside = ((ys - centre[0]) / radius[0]) ** 2 + ((xs - centre[1]) / radius[1]) ** 2
        masks.append(inside + rng.normal(0, 0.02, inside.shape) <= 1)
        labels.append(THINGS[i % len(THINGS)])
        classes[masks[-1]] = labels[-1]
    return classes, masks, labels


def write(folder: Path, count: int) -> None:
    """Ground truth of `count` equal images: each file is there once, under many names."""
    classes, masks, labels = make_truth()
    ids, instances = classes + 1, LABEL_IDS[classes]
    for k, (mask, label) in enumerate(zip(masks, labels)):
        ids[mask], instances[mask] = 70_000 + k, 1000 * LABEL_IDS[label] + k
    segments = [
        {"id": int(i), "category_id": int(LABEL_IDS[classes[ids == i][0]]), "area": int((ids == i).sum()), "iscrowd": 0}
        for i in np.unique(ids)
    ]
    pictures = {
        "semantic/{}.png": classes.astype(np.uint8),
        "panoptic/{}.png": id2rgb(ids),
        "gt/town/{}_gtFine_labelIds.png": LABEL_IDS[classes].astype(np.uint8),
        "gt/town/{}_gtFine_instanceIds.png": instances.astype(np.uint16),
    }
    names = [f"town_{i:06d}_000019" for i in range(count)]
    for pattern, picture in pictures.items():
        first = folder / pattern.format("first")
        first.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(first)
        for name in names:
            os.link(first, folder / pattern.format(name))
        first.unlink()
    rles = [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    annotations = [
        {
            "id": i * INSTANCES + k + 1,
            "image_id": i,
            "category_id": int(LABEL_IDS[label]),
            "iscrowd": 0,
            "area": int(mask_util.area(rle)),
            "bbox": mask_util.toBbox(rle).tolist(),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        for i in range(count)
        for k, (rle, label) in enumerate(zip(rles, labels))
    ]
    rows = [{"id": int(LABEL_IDS[c]), "name": str(c), "isthing": int(c in THINGS)} for c in range(CLASSES)]
    images = [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(names)]
    panoptic = [{"image_id": i, "file_name": f"{n}.png", "segments_info": segments} for i, n in enumerate(names)]
    things = [row for row in rows if row["isthing"]]
    for file, content in (
        ("instances.json", {"images": images, "annotations": annotations, "categories": things}),
        ("panoptic.json", {"images": images, "annotations": panoptic, "categories": rows}),
    ):
        (folder / file).write_text(json.dumps(content))


def register(folder: Path, records: list[dict[str, Any]]) -> None:
    names = [trainId2label[c].name for c in range(CLASSES)]
    thing_ids = {int(LABEL_IDS[c]): c for c in THINGS}
    DatasetCatalog.register(NAME, partial(list, records))
    MetadataCatalog.get(NAME).set(
        json_file=str(folder / "instances.json"),
        panoptic_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder / "panoptic"),
        gt_dir=str(folder / "gt"),
        ignore_label=255,
        thing_classes=names,
        stuff_classes=names,
        thing_dataset_id_to_contiguous_id=thing_ids,
        stuff_dataset_id_to_contiguous_id={int(LABEL_IDS[c]): c for c in range(CLASSES) if c not in THINGS},
    )
    MetadataCatalog.get(f"{NAME}_things").set(
        json_file=str(folder / "instances.json"),
        thing_classes=names[THINGS[0] :],
        thing_dataset_id_to_contiguous_id={i: c - THINGS[0] for i, c in thing_ids.items()},
    )


def outputs_for(evaluator: str) -> Any:
    """A function that makes the model's output for an image: the ground truth, moved by some pixels."""
    classes, masks, labels = make_truth()
    rng = np.random.default_rng(1)
    if "Instance" in evaluator or evaluator == "COCOEvaluator":
        stack = torch.from_numpy(np.stack(masks))
        first = THINGS[0] if evaluator == "COCOEvaluator" else 0

        def make() -> dict[str, Any]:
            moved = stack.roll(int(rng.integers(1, 9)), 2)
            return {
                "instances": Instances(
                    (HEIGHT, WIDTH),
                    pred_masks=moved,
                    pred_boxes=Boxes(torch.zeros(len(moved), 4)),
                    scores=torch.from_numpy(rng.random(len(moved))),
                    pred_classes=torch.tensor(labels) - first,
                )
            }

        return make
    if "Panoptic" in evaluator:
        ids = torch.from_numpy(classes + 1)
        segments = [{"id": int(i) + 1, "category_id": int(i), "isthing": int(i) in THINGS} for i in np.unique(classes)]
        return lambda: {"panoptic_seg": (ids.roll(int(rng.integers(1, 9)), 1), segments)}
    labels_map = torch.from_numpy(classes)  # scores would only add a constant
    return lambda: {"sem_seg": labels_map.roll(int(rng.integers(1, 9)), 1)}


def measure(evaluator: str, count: int, folder: Path) -> None:
    """Run one evaluator in this process; print MB: with the ground truth loaded, peaks after images and scores."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    records = [
        {
            "file_name": f"town/town_{i:06d}_000019.png",
            "image_id": i,
            "sem_seg_file_name": str(folder / f"semantic/town_{i:06d}_000019.png"),
        }
        for i in range(count)
    ]
    register(folder, records)
    with tempfile.TemporaryDirectory() as output:
        make = outputs_for(evaluator)
        judge = EVALUATORS[evaluator](output)
        judge.reset()
        gc.collect()
        loaded = status_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the data
        for record in records:
            judge.process([record], [make()])
        streamed = status_mb("VmHWM")
        judge.evaluate()
        print(json.dumps([loaded, streamed, status_mb("VmHWM")]))


def status_mb(key: str) -> float:
    """VmRSS, what this process holds, or VmHWM, the most it held; in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def in_own_process(*arguments: str) -> str:
    """Peak memory belongs to a process, and so does the memory of writing the data."""
    command = [sys.executable, __file__, *arguments]
    # Freed arrays go back to the system; otherwise the heap keeps some, and how many is chance.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs=2, type=int, default=[50, 500], metavar=("FEW", "MANY"))
    parser.add_argument("--evaluators", nargs="+", choices=EVALUATORS, default=list(EVALUATORS))
    parser.add_argument("--limit", type=float, default=20, help="KB that each further image may add to the peak")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=["write", "measure"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "write":
        return write(args.folder, args.images[0])
    if args.step == "measure":
        return measure(args.evaluators[0], args.images[0], args.folder)
    few, many = args.images
    print("MB above the loaded ground truth, after the images / after the scores")
    print(f"| evaluator | {few} images | {many} images | KB for each further image | ground truth, KB/image |")
    print("| --- | ---: | ---: | ---: | ---: |")
    grown = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in (few, many):
            (Path(temporary) / str(count)).mkdir()
            in_own_process("--step", "write", "--folder", f"{temporary}/{count}", "--images", str(count), str(count))
        for evaluator in args.evaluators:
            rows = []
            for count in (few, many):
                options = ["--folder", f"{temporary}/{count}", "--images", str(count), str(count)]
                text = in_own_process("--step", "measure", "--evaluators", evaluator, *options)
                rows.append(json.loads(text.splitlines()[-1]))
            (loaded, *a), (loaded_more, *b) = rows
            above = [[peak - base for peak in peaks] for base, peaks in ((loaded, a), (loaded_more, b))]
            per_image = [1024 * (y - x) / (many - few) for x, y in zip(*above)]
            truth = 1024 * (loaded_more - loaded) / (many - few)
            cells = [f"{x:.0f} / {y:.0f}" for x, y in above] + [" / ".join(f"{x:.1f}" for x in per_image)]
            print(f"| {evaluator} | {' | '.join(cells)} | {truth:.1f} |", flush=True)
            if max(per_image) > args.limit:
                grown.append(evaluator)
    if grown:
        sys.exit(f"Memory grows by more than {args.limit} KB with each image: {', '.join(grown)}")


if __name__ == "__main__":
    main()
