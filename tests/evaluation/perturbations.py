"""Every evaluator on predictions that are wrong in a known way, next to an independent program.

`python tests/evaluation/perturbations.py` prints the table: evaluator, perturbation, our score, the independent
program's, and the largest difference over all metrics they share.
"""

import json
import logging
import math
import tempfile

import detectron2
import oracles
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from scenes import CLASSES, HEIGHT, LABEL_IDS, PERTURBATIONS, THINGS, WIDTH, class_map, make_scene, paint, rle, split
from scenes import write as write_scenes

from mask2former.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator, InstanceSegEvaluator
from mask2former.evaluation.boundary_ap import boundary_ap
from mask2former.evaluation.semantic_pq import evaluate_semantic_pq

# Upstream's fast implementation is compiled, which not every installation is; the embedded one is a package.
SEGM = {"tasks": ("segm",), "use_fast_impl": getattr(detectron2, "EMBEDDED", False)}


def record_of(scene):
    return {"file_name": scene.file_name, "image_id": scene.number, "height": HEIGHT, "width": WIDTH}


def run(evaluator, scenes, outputs):
    evaluator.reset()
    for scene, output in zip(scenes, outputs):
        evaluator.process([record_of(scene)], [output])
    return evaluator.evaluate()


def instances_of(segments, first_class=0):
    things = split(segments)[1]
    masks = torch.zeros(len(things), HEIGHT, WIDTH, dtype=torch.bool)
    for i, thing in enumerate(things):
        masks[i] = torch.from_numpy(thing.mask)
    return {
        "instances": Instances(
            (HEIGHT, WIDTH),
            pred_masks=masks,
            pred_boxes=Boxes(torch.zeros(len(things), 4)),
            # In double precision, like the independent program's: ties and order must be the same.
            scores=torch.tensor([s.score for s in things], dtype=torch.float64),
            pred_classes=torch.tensor([s.label - first_class for s in things], dtype=torch.int64),
        )
    }


def scores_of(segments):
    labels = torch.from_numpy(class_map(segments, 0))
    return {"sem_seg": torch.nn.functional.one_hot(labels, len(CLASSES)).permute(2, 0, 1).float()}


def segments_of(segments):
    ids = paint(segments)
    infos = [
        {"id": i, "category_id": s.label, "isthing": s.label in THINGS}
        for i, s in enumerate(segments, start=1)
        if (ids == i).any()
    ]
    return {"panoptic_seg": (torch.from_numpy(ids), infos)}


def coco(name, scenes, predictions):
    outputs = [instances_of(segments, THINGS[0]) for segments in predictions]
    return run(COCOEvaluator(f"{name}_things", **SEGM), scenes, outputs)["segm"]


def scattered(name, scenes, predictions):
    # The data set's thing_classes name all 19 classes, of which 8 are things.
    evaluator = InstanceSegEvaluator(name, **SEGM)
    return run(evaluator, scenes, [instances_of(segments) for segments in predictions])["segm"]


def semantic(name, scenes, predictions):
    return run(SemSegEvaluator(f"{name}_semantic"), scenes, [scores_of(s) for s in predictions])["sem_seg"]


def panoptic(name, scenes, predictions):
    return run(COCOPanopticEvaluator(name), scenes, [segments_of(s) for s in predictions])["panoptic_seg"]


def cityscapes_instance(name, scenes, predictions):
    return run(CityscapesInstanceEvaluator(name), scenes, [instances_of(s) for s in predictions])["segm"]


def cityscapes_semantic(name, scenes, predictions):
    return run(CityscapesSemSegEvaluator(name), scenes, [scores_of(s) for s in predictions])["sem_seg"]


def boundary(name, scenes, predictions):
    results = [
        {"image_id": scene.number, "category_id": LABEL_IDS[s.label], "score": s.score, "segmentation": rle(s.mask)}
        for scene, segments in zip(scenes, predictions)
        for s in split(segments)[1]
    ]
    with open(f"{name}/results.json", "w") as file:
        json.dump(results, file)
    return boundary_ap(MetadataCatalog.get(name).json_file, f"{name}/results.json")


def semantic_pq(name, scenes, predictions):
    # The file is the one that SemSegEvaluator writes.
    outputs = [scores_of(segments) for segments in predictions]
    run(SemSegEvaluator(f"{name}_semantic", output_dir=name), scenes, outputs)
    return evaluate_semantic_pq(f"{name}_semantic", f"{name}/sem_seg_predictions.json")


# evaluator -> ours, independent, its main score
EVALUATORS = {
    "COCOEvaluator": (coco, oracles.coco, "AP"),
    "InstanceSegEvaluator": (scattered, oracles.coco, "AP"),
    "boundary AP": (boundary, oracles.boundary, "AP"),
    "SemSegEvaluator": (semantic, oracles.semantic, "mIoU"),
    "COCOPanopticEvaluator": (panoptic, oracles.panoptic, "PQ"),
    "PQ of semantic predictions": (semantic_pq, oracles.semantic_pq, "PQ"),
    "CityscapesInstanceEvaluator": (cityscapes_instance, oracles.cityscapes_instance, "AP"),
    "CityscapesSemSegEvaluator": (cityscapes_semantic, oracles.cityscapes_semantic, "IoU"),
}


def prepare(folder, images=4):
    """-> name of the data set, its scenes."""
    scenes = [make_scene(number) for number in range(1, images + 1)]
    return write_scenes(scenes, folder), scenes


def compare(evaluator, perturbation, name, scenes):
    """-> our main score, the independent one, the largest difference over the metrics of both, and their number."""
    ours, independent, main = EVALUATORS[evaluator]
    predictions = [PERTURBATIONS[perturbation](scene) for scene in scenes]
    a, b = ours(name, scenes, predictions), independent(name, scenes, predictions)
    lacking = {key for key in b.keys() - a.keys() if not math.isnan(b[key])}
    assert not lacking, f"{evaluator} does not report {lacking}"
    shared = [(a[key], b[key]) for key in a.keys() & b.keys()]
    # Both must agree on what cannot be measured.
    differences = [0.0 if math.isnan(x) and math.isnan(y) else abs(x - y) for x, y in shared]
    worst = math.nan if any(map(math.isnan, differences)) else max(differences)
    return a[main], b[main], worst, len(shared)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        name, scenes = prepare(f"{folder}/data")
        print("| evaluator | perturbation | ours | independent | largest difference | metrics |")
        print("| --- | --- | ---: | ---: | ---: | ---: |")
        for evaluator in EVALUATORS:
            for perturbation in PERTURBATIONS:
                ours, independent, worst, count = compare(evaluator, perturbation, name, scenes)
                row = f"{ours:.4f} | {independent:.4f} | {worst:.0e} | {count}"
                print(f"| {evaluator} | {perturbation} | {row} |", flush=True)
