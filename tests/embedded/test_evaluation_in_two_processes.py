"""Two processes with half of the images each report what one process with all of them reports."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from panopticapi.utils import id2rgb
from PIL import Image

NAME, SIZE, IMAGES = "test_two_processes", (24, 32), 5


@pytest.fixture
def images(tmp_path):
    """Each image is halved into class 0 (a thing, id 1) and class 1 (stuff, id 2); for every task."""
    annotations, panoptic, records = [], [], []
    for image in range(IMAGES):
        labels = np.zeros(SIZE, np.uint8)
        labels[:, 10 + image :] = 1
        semantic, ids = f"{tmp_path}/semantic{image}.png", f"panoptic{image}.png"
        Image.fromarray(labels).save(semantic)
        Image.fromarray(id2rgb(labels.astype(int) + 1)).save(tmp_path / ids)
        records.append({"file_name": f"{image}.jpg", "sem_seg_file_name": semantic})
        areas = np.bincount(labels.ravel()).tolist()
        segments = [{"id": i + 1, "category_id": i + 1, "iscrowd": 0, "area": area} for i, area in enumerate(areas)]
        panoptic.append({"image_id": image, "file_name": ids, "segments_info": segments})
        box = [0, 0, 10 + image, 24]
        polygon = [0, 0, box[2], 0, box[2], 24, 0, 24]
        annotation = {"id": image + 1, "image_id": image, "category_id": 1, "iscrowd": 0, "bbox": box, "area": areas[0]}
        annotations.append({**annotation, "segmentation": [polygon]})
    categories = [{"id": 1, "name": "thing", "isthing": 1}, {"id": 2, "name": "stuff", "isthing": 0}]
    infos = [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(IMAGES)]
    instances = {"info": {}, "images": infos, "annotations": annotations, "categories": categories[:1]}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "panoptic.json").write_text(json.dumps({"annotations": panoptic, "categories": categories}))
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        json_file=str(tmp_path / "instances.json"),
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(tmp_path),
        thing_classes=["thing"],
        stuff_classes=["thing", "stuff"],
        thing_dataset_id_to_contiguous_id={1: 0},
        stuff_dataset_id_to_contiguous_id={2: 1},
        ignore_label=255,
    )
    DatasetCatalog.register(f"{NAME}_semantic", lambda: records)
    MetadataCatalog.get(f"{NAME}_semantic").set(stuff_classes=["thing", "stuff"], ignore_label=255)
    yield
    for name in (NAME, f"{NAME}_semantic"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def predict(image):
    """The border a little off, more so in later images."""
    thing = torch.zeros(SIZE, dtype=torch.bool)
    thing[:, : 10 - image] = True
    found = Instances(SIZE, pred_masks=thing[None], scores=torch.tensor([0.5 + 0.1 * image]))
    found.pred_classes, found.pred_boxes = torch.tensor([0]), Boxes(torch.tensor([[0.0, 0.0, 10 - image, 24.0]]))
    segments = [{"id": 1, "category_id": 0, "isthing": True}, {"id": 2, "category_id": 1, "isthing": False}]
    return {
        "instances": found,
        "sem_seg": torch.stack([thing, ~thing]).float(),
        "panoptic_seg": (2 - thing.int(), segments),
    }


def evaluate(images, folder):
    folder = str(folder)
    evaluators = COCOEvaluator(NAME, output_dir=folder), SemSegEvaluator(f"{NAME}_semantic", output_dir=folder)
    evaluator = DatasetEvaluators([*evaluators, COCOPanopticEvaluator(NAME, folder)])
    evaluator.reset()
    for image in images:
        evaluator.process([{"file_name": f"{image}.jpg", "image_id": image}], [predict(image)])
    return evaluator.evaluate()


def written(folder):
    """What is in the files of results, in the order of the images."""
    content = {}
    for name in ("coco_instances_results.json", "sem_seg_predictions.json", "predictions.json"):
        entries = json.loads((folder / name).read_text())
        entries = entries["annotations"] if isinstance(entries, dict) else entries
        content[name] = sorted(
            entries, key=lambda entry: (str(entry.get("file_name", entry.get("image_id"))), str(entry))
        )
    images = torch.load(folder / "instances_predictions.pth")
    content["instances_predictions.pth"] = sorted(images, key=lambda image: image["image_id"])
    return content


def _process(rank, file, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    queue.put((rank, evaluate(range(IMAGES)[rank::2], file.parent / "two")))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_score_and_write_like_one(images, tmp_path):
    alone = evaluate(range(IMAGES), tmp_path / "one")
    assert set(alone) == {"bbox", "segm", "sem_seg", "panoptic_seg"}
    context = torch.multiprocessing.get_context("fork")  # the data set is registered in this process
    queue = context.Queue()
    workers = [context.Process(target=_process, args=(rank, tmp_path / "rendezvous", queue)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert results[1] == {}
    assert written(tmp_path / "two") == written(tmp_path / "one")
    assert [len(entries) for entries in written(tmp_path / "one").values()] == [IMAGES, 2 * IMAGES, IMAGES, IMAGES]
    for task, metrics in alone.items():
        assert results[0][task] == pytest.approx(metrics, nan_ok=True)
        assert any(0 < value < 100 for value in metrics.values())
