"""`embedded/` against results recorded from the original detectron2: orders of batches, mapped images, and scores.

The functions below give the results on either one; `recorded/data.json` holds those of the original, written by
`python tests/embedded/test_conformance_data.py` where the original is installed.
"""

import itertools
import json
import random
import tempfile
from pathlib import Path

import detectron2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from panopticapi.utils import id2rgb
from PIL import Image

EMBEDDED = getattr(detectron2, "EMBEDDED", False)
RECORDED = Path(__file__).parent / "recorded" / "data.json"
HEIGHT, WIDTH = 60, 80
# Ids with holes; the first three are things.
CATEGORIES = {2: "cat", 5: "dog", 7: "cow", 20: "sky", 21: "road"}
THINGS = dict(zip((2, 5, 7), range(3)))
STUFF = dict(zip((20, 21), range(3, 5)))


def seed(state):
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


# ---- orders of batches


def records():
    """17 images, some high, some wide, some square; the last category is rare."""
    rng = np.random.default_rng(4)
    sizes = [(40, 60), (60, 40), (50, 50)]
    found = []
    for number in range(17):
        height, width = sizes[rng.integers(3)]
        annotations = [{"category_id": 2 if number == 13 else number % 2, "iscrowd": 0}]
        found.append({"image_id": number, "height": height, "width": width, "annotations": annotations})
    return found


def batches(loader, count=15):
    return [[record["image_id"] for record in batch] for batch in itertools.islice(loader, count)]


def loaders():
    """-> {name: batches of image ids}"""
    data, found = records(), {}
    same = lambda record: record
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(data, 0.5)
    samplers = {
        "shuffled": lambda: TrainingSampler(len(data), seed=42),
        "in order": lambda: TrainingSampler(len(data), shuffle=False),
        "repeated": lambda: RepeatFactorTrainingSampler(factors, seed=42),
        "a part": lambda: RandomSubsetTrainingSampler(len(data), 0.5, seed_shuffle=42, seed_subset=3),
    }
    for (name, sampler), grouping, size in itertools.product(samplers.items(), (True, False), (1, 2, 4)):
        loader = build_detection_train_loader(
            data, mapper=same, sampler=sampler(), total_batch_size=size, aspect_ratio_grouping=grouping, num_workers=0
        )
        found[f"{name}, batches of {size}, grouping {grouping}"] = batches(loader)

    seed(7)  # the default sampler takes its seed from numpy
    loader = build_detection_train_loader(data, mapper=same, total_batch_size=4, aspect_ratio_grouping=False)
    found["default sampler"] = batches(loader)

    name = "conformance_loader"
    DatasetCatalog.register(name, lambda: data)
    MetadataCatalog.get(name).set(thing_classes=["a", "b", "c"])
    try:
        for kind, grouping in itertools.product(("TrainingSampler", "RepeatFactorTrainingSampler"), (True, False)):
            cfg = get_cfg()
            cfg.DATASETS.TRAIN = (name, name)
            cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.SAMPLER_TRAIN = 0, kind
            cfg.DATALOADER.REPEAT_THRESHOLD = 0.4
            cfg.DATALOADER.ASPECT_RATIO_GROUPING, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = grouping, 3, 7
            found[f"config, {kind}, grouping {grouping}"] = batches(build_detection_train_loader(cfg, mapper=same))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    return found


# ---- mapped images


def write_image(folder):
    """-> the record of an image with polygons, an RLE, a crowd and a map of labels."""
    yy, xx = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([(yy * 5 + xx * 3) % 256, (yy * xx) % 256, 255 - xx * 3], -1).astype(np.uint8)
    Image.fromarray(pixels).save(f"{folder}/image.png")
    Image.fromarray(((yy // 20) * 3 + xx // 30).astype(np.uint8)).save(f"{folder}/labels.png")
    # Fractions, as in COCO: the original cuts off what comes after the point where all numbers of a box are integers.
    boxes = [[5.5, 6, 30, 20], [40, 10.25, 25, 45], [20, 30, 22.5, 18], [70, 50, 8, 8.5]]
    annotations = []
    for number, (x, y, w, h) in enumerate(boxes):
        polygon = [x, y, x + w, y + 0.5, x + w - 2.25, y + h, x + 1, y + h - 1]
        annotation = {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": number}
        annotations.append({**annotation, "iscrowd": int(number == 3), "segmentation": [polygon]})
    return {
        "file_name": f"{folder}/image.png",
        "sem_seg_file_name": f"{folder}/labels.png",
        "image_id": 1,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": annotations,
    }


def with_bit_masks(record):
    """The same with RLEs in place of polygons."""
    annotations = []
    for annotation in record["annotations"]:
        rles = mask_util.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH)
        annotations.append({**annotation, "segmentation": mask_util.merge(rles)})
    return {**record, "annotations": annotations}


def mapper_settings(kind):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (30, 45, 90), 100
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 41, 100
    if kind == "crop":
        cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "relative_range", [0.5, 0.6]
    if kind == "bit masks":
        cfg.INPUT.MASK_FORMAT, cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = "bitmask", "RGB", "vertical"
    return cfg


def mapped(record, kind):
    """For five states: sizes, some pixels and labels, boxes, classes, polygons or areas, and what is drawn next."""
    record = with_bit_masks(record) if kind == "bit masks" else record
    mapper = DatasetMapper(mapper_settings(kind), is_train=kind != "test")
    numbers = []
    for state in range(5):
        seed(state)
        result = mapper(record)
        image, labels = result["image"], result["sem_seg"]
        numbers += [*image.shape, *labels.shape, result["height"], result["width"]]
        numbers += image.reshape(-1)[::431].tolist() + labels.reshape(-1)[::211].tolist()
        if kind != "test":
            instances = result["instances"]
            numbers += instances.gt_boxes.tensor.reshape(-1).tolist() + instances.gt_classes.tolist()
            if kind == "bit masks":
                numbers += instances.gt_masks.tensor.sum((1, 2)).tolist()
            else:
                numbers += np.concatenate([p for polygons in instances.gt_masks.polygons for p in polygons]).tolist()
        numbers += [np.random.rand(), random.random()]
    return numbers


KINDS = ("plain", "crop", "bit masks", "test")


# ---- scores


def regions(number):
    """-> (H, W) numbers of 9 regions, and the category of each."""
    rng = np.random.default_rng(number)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    points = rng.random((9, 2)) * (HEIGHT, WIDTH)
    nearest = ((ys[..., None] - points[:, 0]) ** 2 + (xs[..., None] - points[:, 1]) ** 2).argmin(-1)
    return nearest, rng.choice(list(CATEGORIES), 9)


def rle(mask):
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def write_truth(name, folder, images=5):
    """Region 0 is void, region 1 a crowd if it is a thing; all in the three forms that the evaluators read."""
    instances, panoptic, records = [], [], []
    contiguous = {**THINGS, **STUFF}
    for number in range(images):
        nearest, categories = regions(number)
        labels, infos = np.full((HEIGHT, WIDTH), 255, np.uint8), []
        for region in range(1, 9):
            mask, category = nearest == region, int(categories[region])
            crowd, area = int(region == 1 and category in THINGS), int(mask.sum())
            labels[mask] = contiguous[category]
            box = mask_util.toBbox(rle(mask)).tolist()
            one = {"id": region, "category_id": category, "iscrowd": crowd, "area": area, "bbox": box}
            infos.append(one)
            if category in THINGS:
                entry = {"id": len(instances) + 1, "image_id": number, "segmentation": rle(mask)}
                instances.append({**one, **entry})
        Image.fromarray(labels).save(f"{folder}/{number}_labels.png")
        Image.fromarray(id2rgb(nearest)).save(f"{folder}/{number}.png")
        panoptic.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
        records.append({"file_name": f"{number}.jpg", "sem_seg_file_name": f"{folder}/{number}_labels.png"})
    rows = [{"id": c, "name": n, "isthing": int(c in THINGS), "color": [c] * 3} for c, n in CATEGORIES.items()]
    sizes = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(images)]
    common = {"info": {}, "images": sizes}
    things = [row for row in rows if row["isthing"]]
    for file, rest in (
        ("instances", {"annotations": instances, "categories": things}),
        ("panoptic", {"annotations": panoptic, "categories": rows}),
    ):
        Path(folder, f"{file}.json").write_text(json.dumps({**common, **rest}))
    # The semantic evaluator wants every class among the "stuff".
    DatasetCatalog.register(f"{name}_semantic", lambda: records)
    MetadataCatalog.get(f"{name}_semantic").set(
        stuff_classes=list(CATEGORIES.values()), stuff_dataset_id_to_contiguous_id=contiguous, ignore_label=255
    )
    MetadataCatalog.get(name).set(
        json_file=f"{folder}/instances.json",
        panoptic_json=f"{folder}/panoptic.json",
        panoptic_root=str(folder),
        thing_classes=list(CATEGORIES.values())[:3],
        thing_dataset_id_to_contiguous_id=THINGS,
        stuff_dataset_id_to_contiguous_id=STUFF,
    )


def prediction(number):
    """Shifted regions, sometimes of another category, things twice more beside themselves. -> a model's output."""
    nearest, categories = regions(number)
    rng = np.random.default_rng(100 + number)
    shifted = np.roll(nearest, rng.integers(0, 4, 2), (0, 1))
    other = np.where(rng.random(9) < 0.8, categories, rng.choice(list(CATEGORIES), 9))
    classes = np.array([{**THINGS, **STUFF}[int(category)] for category in other])
    infos = [
        {"id": region + 1, "category_id": int(classes[region]), "isthing": bool(classes[region] < 3)}
        for region in range(9)
    ]
    masks = [np.roll(shifted == region, shift, 1) for shift in (0, 2, 5) for region in range(9) if classes[region] < 3]
    boxes = [mask_util.toBbox(rle(mask)) for mask in masks]
    boxes = torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes), pred_masks=torch.from_numpy(np.array(masks)))
    instances.pred_classes = torch.tensor([c for c in classes if c < 3] * 3)
    # Scores of few digits in both precisions, none twice.
    instances.scores = torch.tensor((rng.permutation(64)[: len(masks)] + 1) / 64, dtype=torch.float64)
    return {
        "instances": instances,
        "sem_seg": torch.nn.functional.one_hot(torch.from_numpy(classes[shifted]), 5).permute(2, 0, 1).float(),
        "panoptic_seg": (torch.from_numpy(shifted + 1), infos),
    }


def scores(folder):
    """-> {evaluator: its results}"""
    name = "conformance_scores"
    write_truth(name, folder)
    try:
        evaluators = {
            "instances": COCOEvaluator(name, tasks=("bbox", "segm"), use_fast_impl=False),
            "at most 11 per image": COCOEvaluator(
                name, tasks=("bbox", "segm"), use_fast_impl=False, max_dets_per_image=11
            ),
            "semantic": SemSegEvaluator(f"{name}_semantic"),
            "panoptic": COCOPanopticEvaluator(name),
        }
        if EMBEDDED:  # the original's fast implementation is compiled; this one must give the same
            evaluators["fast"] = COCOEvaluator(name, tasks=("bbox", "segm"))
        found = {}
        for key, evaluator in evaluators.items():
            evaluator.reset()
            for number in range(5):
                shape = {"height": HEIGHT, "width": WIDTH}
                evaluator.process([{"image_id": number, "file_name": f"{number}.jpg", **shape}], [prediction(number)])
            found[key] = {task: dict(result) for task, result in evaluator.evaluate().items()}
        return found
    finally:
        DatasetCatalog.remove(f"{name}_semantic")
        MetadataCatalog.remove(f"{name}_semantic")
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def test_orders_of_batches(recorded):
    found = loaders()
    assert found.keys() == recorded["loaders"].keys()
    for name, order in found.items():
        assert order == recorded["loaders"][name], name


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_images_under_fixed_random_states(recorded, tmp_path, kind):
    assert mapped(write_image(tmp_path), kind) == pytest.approx(recorded["mapped"][kind], abs=1e-4)


def test_scores_of_a_perturbed_set(recorded, tmp_path):
    found = scores(tmp_path)
    if EMBEDDED:
        assert found.pop("fast") == {t: pytest.approx(r, nan_ok=True) for t, r in found["instances"].items()}
    assert found.keys() == recorded["scores"].keys()
    for name, results in recorded["scores"].items():
        assert found[name].keys() == results.keys()
        for task, numbers in results.items():
            if EMBEDDED and task == "sem_seg":
                # The original's bands are those of the map of labels, in which class 0 has every pixel off them;
                # here they are those of each class, and only if asked for.
                numbers = {key: value for key, value in numbers.items() if "Boundary" not in key and "B-Iou" not in key}
            assert found[name][task] == pytest.approx(numbers, abs=1e-6, nan_ok=True), (name, task)
    assert 0 < found["instances"]["segm"]["AP"] < 100 and 0 < found["panoptic"]["panoptic_seg"]["PQ"] < 100


if __name__ == "__main__":
    assert not EMBEDDED, "These are the original's results: run this where it is installed."
    with tempfile.TemporaryDirectory() as folder:
        everything = {
            "loaders": loaders(),
            "mapped": {kind: mapped(write_image(folder), kind) for kind in KINDS},
            "scores": scores(folder),
        }
    RECORDED.write_text(json.dumps(everything) + "\n")
