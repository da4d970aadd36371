"""Panoptic Quality: against the implementation in cityscapesscripts, and cases worked by hand."""

import copy
import json
import logging
from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi.evaluation import PQStat, pq_compute, pq_compute_single_core
from panopticapi.utils import IdGenerator, id2rgb, rgb2id, save_json
from PIL import Image

CATEGORIES = {i: {"id": i, "name": f"c{i}", "isthing": int(i < 4), "color": [i, 2 * i, 9]} for i in range(1, 7)}
ours_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream does otherwise")


def segment_map(rng, height=40, width=60, count=12):
    """(H, W) numbers of the nearest of `count` random points."""
    ys, xs = np.mgrid[:height, :width]
    points = rng.random((count, 2)) * (height, width)
    return ((ys[..., None] - points[:, 0]) ** 2 + (xs[..., None] - points[:, 1]) ** 2).argmin(-1)


def annotate(regions, ids, categories, void, crowd):
    """-> (H, W) ids with 0 for void regions, and segments_info."""
    id_map = np.where(void, 0, ids)[regions]
    present = np.unique(id_map).tolist()
    segments = [
        {
            "id": int(ids[i]),
            "category_id": int(categories[i]),
            "iscrowd": int(crowd[i]),
            "area": int((id_map == ids[i]).sum()),
        }
        for i in range(len(ids))
        if ids[i] in present
    ]
    return id_map, segments


def random_pairs(folder, images=10, void=0.15, crowd=0.2, empty=0.15, seed=0):
    """Ground truth and a prediction that is shifted, sometimes empty, sometimes of another category."""
    rng, pairs = np.random.default_rng(seed), []
    for image in range(images):
        regions, categories = segment_map(rng), rng.integers(1, 7, 12)
        halves = []
        for kind in ("gt", "pred"):
            ids = rng.choice(2**24 - 1, 12, replace=False) + 1
            if kind == "gt":
                id_map, segments = annotate(regions, ids, categories, rng.random(12) < void, rng.random(12) < crowd)
            else:
                shifted = np.roll(regions, rng.integers(0, 4, 2), (0, 1))
                other = np.where(rng.random(12) < 0.8, categories, rng.integers(1, 7, 12))
                id_map, segments = annotate(shifted, ids, other, rng.random(12) < empty, np.zeros(12))
            name = f"{kind}{image}.png"
            Image.fromarray(id2rgb(id_map)).save(folder / name)
            halves.append({"image_id": image, "file_name": name, "segments_info": segments})
        pairs.append(tuple(halves))
    return pairs


@pytest.mark.parametrize(
    "case",
    [
        {"void": 0, "crowd": 0, "empty": 0},
        {"void": 0.3, "crowd": 0, "empty": 0},
        {"void": 0, "crowd": 0.4, "empty": 0},
        {"void": 0, "crowd": 0, "empty": 0.3},
        {"empty": 1.0},
        {"seed": 7},
    ],
)
def test_the_numbers_are_those_of_cityscapesscripts(tmp_path, case):
    cityscapes = pytest.importorskip("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
    pairs = random_pairs(tmp_path, **case)
    ours = pq_compute_single_core(0, pairs, tmp_path, tmp_path, CATEGORIES)
    theirs = cityscapes.pq_compute_single_core(0, copy.deepcopy(pairs), str(tmp_path), str(tmp_path), CATEGORIES)
    for category in CATEGORIES:
        mine, other = ours[category], theirs[category]
        assert (mine.tp, mine.fp, mine.fn) == (other.tp, other.fp, other.fn)
        assert mine.iou == pytest.approx(other.iou, abs=1e-9)
    for isthing in (None, True, False):
        mine, per_class = ours.pq_average(CATEGORIES, isthing)
        other, other_per_class = theirs.pq_average(CATEGORIES, isthing)
        assert mine == pytest.approx(other, abs=1e-9)
        for category, quality in per_class.items():
            assert quality == pytest.approx({k: other_per_class[category][k] for k in quality}, abs=1e-9)


def one_image(folder, true, pred, true_segments, pred_segments):
    """PQ counts of one image given as small id maps; segments as {id: category} or {id: (category, iscrowd)}."""
    halves = []
    for name, ids, segments in (("gt.png", true, true_segments), ("pred.png", pred, pred_segments)):
        ids = np.array(ids)
        Image.fromarray(id2rgb(ids)).save(folder / name)
        infos = []
        for key, value in segments.items():
            category, crowd = value if isinstance(value, tuple) else (value, 0)
            infos.append({"id": key, "category_id": category, "iscrowd": crowd, "area": int((ids == key).sum())})
        halves.append({"image_id": 0, "file_name": name, "segments_info": infos})
    stat = pq_compute_single_core(0, [tuple(halves)], folder, folder, CATEGORIES)
    return {key: (c.tp, c.fp, c.fn, c.iou) for key, c in stat.pq_per_cat.items() if c.tp + c.fp + c.fn}


def test_cases_worked_by_hand(tmp_path):
    def run(*args):
        return one_image(tmp_path, *args)

    # three of four pixels: IoU 3/4, a match
    assert run([[7, 7, 7, 7]], [[9, 9, 9, 0]], {7: 1}, {9: 1}) == {1: (1, 0, 0, 0.75)}
    # two of four: IoU 1/2 is not above 1/2
    assert run([[7, 7, 7, 7]], [[9, 9, 0, 0]], {7: 1}, {9: 1}) == {1: (0, 1, 1, 0)}
    # void under the prediction does not count in the union
    assert run([[7, 7, 0, 0]], [[9, 9, 9, 9]], {7: 1}, {9: 1}) == {1: (1, 0, 0, 1.0)}
    # a prediction mostly on void is no mistake
    assert run([[7, 0, 0, 0]], [[0, 9, 9, 9]], {7: 1}, {9: 1}) == {1: (0, 0, 1, 0)}
    # nor is one mostly on a crowd of its category, which itself need not be found; on another's crowd it is
    assert run([[7, 7, 7, 7]], [[9, 9, 9, 0]], {7: (1, 1)}, {9: 1}) == {}
    assert run([[7, 7, 7, 7]], [[9, 9, 9, 0]], {7: (1, 1)}, {9: 2}) == {2: (0, 1, 0, 0)}


@pytest.mark.parametrize(
    ("pred", "segments", "message"),
    [([[9, 8]], {9: 1}, "8"), ([[9, 9]], {9: 1, 8: 1}, "8"), ([[9, 9]], {9: 77}, "77")],
)
def test_a_prediction_that_contradicts_itself_is_refused(tmp_path, pred, segments, message):
    with pytest.raises(KeyError, match=message):
        one_image(tmp_path, [[7, 7]], pred, {7: 1}, segments)


def write_dataset(folder, pairs):
    (folder / "truth.json").write_text(
        json.dumps({"annotations": [gt for gt, _ in pairs], "categories": list(CATEGORIES.values())})
    )
    save_json({"annotations": [pred for _, pred in pairs]}, str(folder / "pred.json"))


def test_pq_compute_on_files_and_its_complaint_about_a_missing_image(tmp_path):
    pairs = random_pairs(tmp_path, images=5)
    write_dataset(tmp_path, pairs)
    files = [str(tmp_path / "truth.json"), str(tmp_path / "pred.json"), str(tmp_path), str(tmp_path)]
    result = pq_compute(*files)
    expected = pq_compute_single_core(0, pairs, tmp_path, tmp_path, CATEGORIES)
    for group, isthing in (("All", None), ("Things", True), ("Stuff", False)):
        assert result[group] == pytest.approx(expected.pq_average(CATEGORIES, isthing)[0])
    assert set(result["per_class"]) == set(CATEGORIES)
    save_json({"annotations": [pred for _, pred in pairs[1:]]}, files[1])
    with pytest.raises(Exception, match="0"):
        pq_compute(*files)


def test_statistics_add_up_and_only_classes_seen_count():
    first, second = PQStat(), PQStat()
    first[1].tp, first[1].iou = 1, 0.8
    second[1].fp, second[1].fn = 1, 1
    first += second
    # category 1: PQ = 0.8 / (1 + 1/2 + 1/2); the five others never occur
    assert first.pq_average(CATEGORIES, None)[0] == pytest.approx({"pq": 0.4, "sq": 0.8, "rq": 0.5, "n": 1})


@ours_only
def test_a_group_without_classes_has_no_score():
    nothing, _ = PQStat().pq_average(CATEGORIES, True)
    assert nothing["n"] == 0 and np.isnan(nothing["pq"])


def test_ids_are_colours():
    assert id2rgb(258 + 3 * 65536) == [2, 1, 3] and rgb2id([2, 1, 3]) == 258 + 3 * 65536
    ids = np.array([[0, 1], [256, 2**24 - 1]])
    colors = id2rgb(ids)
    assert colors.dtype == np.uint8 and colors[1, 1].tolist() == [255, 255, 255]
    assert rgb2id(colors).dtype == np.int32 and np.array_equal(rgb2id(colors), ids)


def test_generated_ids_are_unique_and_stuff_keeps_its_colour():
    generator = IdGenerator(CATEGORIES)
    assert generator.get_id(1) == rgb2id([1, 2, 9])  # its own colour, the first time
    ids = [generator.get_id(1) for _ in range(200)]
    assert len(set(ids)) == 200 and rgb2id([5, 10, 9]) not in ids and 0 not in ids
    assert generator.get_id_and_color(5) == generator.get_id_and_color(5) == (rgb2id([5, 10, 9]), [5, 10, 9])


@pytest.fixture
def dataset(tmp_path):
    pairs = random_pairs(tmp_path, images=4)
    write_dataset(tmp_path, pairs)
    name = "test_panoptic_evaluation"
    MetadataCatalog.get(name).set(
        panoptic_json=str(tmp_path / "truth.json"),
        panoptic_root=str(tmp_path),
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1, 3: 2},
        stuff_dataset_id_to_contiguous_id={4: 3, 5: 4, 6: 5},
        label_divisor=1000,
    )
    yield name, tmp_path, pairs
    MetadataCatalog.pop(name)


def outputs_of(pairs, folder, which):
    for gt, pred in pairs:
        chosen = (gt, pred)[which]
        ids = torch.from_numpy(rgb2id(np.array(Image.open(folder / chosen["file_name"]))))
        crowds = [s["id"] for s in chosen["segments_info"] if s["iscrowd"]]
        ids[torch.isin(ids, torch.tensor(crowds))] = 0  # no model predicts crowds
        segments = [
            {"id": s["id"], "category_id": s["category_id"] - 1, "isthing": s["category_id"] < 4}
            for s in chosen["segments_info"]
            if s["id"] not in crowds
        ]
        yield [{"file_name": f"/images/{gt['image_id']}.jpg", "image_id": gt["image_id"]}], [(ids, segments)]


def evaluate(evaluator, outputs):
    evaluator.reset()
    for inputs, [panoptic] in outputs:
        evaluator.process(inputs, [{"panoptic_seg": panoptic}])
    return evaluator.evaluate()["panoptic_seg"]


def test_the_evaluator_agrees_with_pq_compute(dataset):
    name, folder, pairs = dataset
    metrics = evaluate(COCOPanopticEvaluator(name), outputs_of(pairs, folder, which=1))
    expected = pq_compute(folder / "truth.json", folder / "pred.json", folder, folder)
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for key in ("pq", "sq", "rq"):
            assert metrics[key.upper() + suffix] == pytest.approx(100 * expected[group][key])
    assert len(metrics) == 9 and 0 < metrics["PQ"] < 100


def test_ground_truth_as_predictions_scores_100(dataset, caplog):
    name, folder, pairs = dataset
    with caplog.at_level(logging.INFO):
        metrics = evaluate(COCOPanopticEvaluator(name), outputs_of(pairs, folder, which=0))
    assert list(metrics.values()) == pytest.approx([100] * 9)
    if getattr(detectron2, "EMBEDDED", False):
        assert "PQ is exactly 100" in caplog.text and "6 occur in the ground truth" in caplog.text


def test_class_times_divisor_plus_instance_is_understood(dataset):
    name, folder, pairs = dataset

    def as_labels():
        for inputs, [(ids, segments)] in outputs_of(pairs, folder, which=1):
            labels = torch.full_like(ids, -1)
            for instance, segment in enumerate(segments):
                labels[ids == segment["id"]] = segment["category_id"] * 1000 + instance
            yield inputs, [(labels, None)]

    expected = evaluate(COCOPanopticEvaluator(name), outputs_of(pairs, folder, which=1))
    assert evaluate(COCOPanopticEvaluator(name), as_labels()) == pytest.approx(expected)


def test_a_category_id_without_isthing_is_one_of_the_data_set(dataset):
    name, folder, pairs = dataset

    def converted():
        for inputs, [(ids, segments)] in outputs_of(pairs, folder, which=1):
            yield inputs, [(ids, [{"id": s["id"], "category_id": s["category_id"] + 1} for s in segments])]

    expected = evaluate(COCOPanopticEvaluator(name), outputs_of(pairs, folder, which=1))
    assert evaluate(COCOPanopticEvaluator(name), converted()) == pytest.approx(expected)


def test_an_image_left_out_is_an_error_and_predictions_are_written(dataset):
    name, folder, pairs = dataset
    with pytest.raises(Exception, match="3"):
        evaluate(COCOPanopticEvaluator(name), list(outputs_of(pairs, folder, which=1))[:3])
    out = folder / "out"
    out.mkdir()
    evaluate(COCOPanopticEvaluator(name, str(out)), outputs_of(pairs, folder, which=1))
    written = json.loads(Path(out / "predictions.json").read_text())["annotations"]
    assert [w["file_name"] for w in written] == [f"{i}.png" for i in range(4)]
    assert written[0]["segments_info"][0]["category_id"] == pairs[0][1]["segments_info"][0]["category_id"]
