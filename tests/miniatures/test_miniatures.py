"""Every data set and task end to end, as `python tests/miniatures/run.py` prints it."""

import sys
from pathlib import Path

import detectron2
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import miniatures

pytest.importorskip("cityscapesscripts")
EMBEDDED = getattr(detectron2, "EMBEDDED", False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared data sets, each made when first asked for."""
    made: dict[str, Path] = {}

    def of(dataset: str) -> Path:
        if dataset not in made:
            made[dataset] = tmp_path_factory.mktemp("data")
            miniatures.prepare(dataset, made[dataset])
        return made[dataset]

    return of


@pytest.mark.parametrize("row", miniatures.ROWS, ids=lambda row: f"{row.dataset} {row.task}")
def test_prepared_trained_scored_and_drawn(row, data, tmp_path):
    with miniatures.registered_at(data(row.dataset)):
        cfg = miniatures.small_config(row, tmp_path)
        checkpoint = miniatures.train(cfg)
        results = miniatures.evaluate(cfg, checkpoint)
        perfect = miniatures.evaluate_perfect(cfg)
        assert miniatures.check_perfect(perfect) == []
        assert results.keys() == perfect.keys() and results != perfect
        # Upstream's Visualizer looks up the names of ADE20K's 100 things, whose ids go up to 149, in a list of 100.
        if EMBEDDED or (row.dataset, row.task) != ("ADE20K", "panoptic"):
            miniatures.draw(cfg, tmp_path / "picture.png")


EXPECTED_TASKS = {
    ("COCO", "panoptic"): {"panoptic_seg", "bbox", "segm", "sem_seg"},
    ("ADE20K", "panoptic"): {"panoptic_seg", "bbox", "segm", "sem_seg"},
    ("Cityscapes", "panoptic"): {"panoptic_seg", "segm", "sem_seg"},
    ("Mapillary Vistas", "panoptic"): {"panoptic_seg", "sem_seg"},
}


@pytest.mark.parametrize("name", EXPECTED_TASKS, ids=" ".join)
def test_a_panoptic_model_is_scored_at_every_task_that_is_on(name, data, tmp_path):
    row = next(row for row in miniatures.ROWS if (row.dataset, row.task) == name)
    with miniatures.registered_at(data(row.dataset)):
        scored = miniatures.evaluate_perfect(miniatures.small_config(row, tmp_path)).keys()
    assert scored - {"bbox"} == EXPECTED_TASKS[name] - {"bbox"}


@pytest.mark.skipif(not EMBEDDED, reason="upstream does not join the processes that torchrun starts")
def test_two_processes_score_like_one(data, tmp_path):
    row = next(row for row in miniatures.ROWS if (row.dataset, row.task) == ("Cityscapes", "panoptic"))
    root = data(row.dataset)
    with miniatures.registered_at(root):
        cfg = miniatures.small_config(row, tmp_path)
        checkpoint = miniatures.train(cfg)
    one, two = (miniatures.scores_by_command(row, root, cfg, checkpoint, processes) for processes in (1, 2))
    assert len(one) == 9  # three tasks: name, columns, numbers
    assert one == two
