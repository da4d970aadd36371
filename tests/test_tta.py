"""Test-time augmentation: the mean over sizes and mirror images, in the memory of two results."""

import copy
import weakref
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.projects.deeplab import add_deeplab_config
from torch import nn
from torch.nn import functional as F

from mask2former import add_maskformer2_config
from mask2former.test_time_augmentation import SemanticSegmentorWithTTA
from mask2former.trainer import Trainer

HEIGHT, WIDTH = 40, 60


def config(sizes=(20, 40), flip=True, *options):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", list(sizes), "TEST.AUG.MAX_SIZE", 200, "TEST.AUG.FLIP", flip])
    cfg.merge_from_list(list(options))
    return cfg


class Brightness(nn.Module):
    """Class 0 scores the red channel, class 1 how far right a pixel of the input is."""

    semantic_on, panoptic_on, instance_on, semantic_label_map = True, True, True, True

    def __init__(self):
        super().__init__()
        self.seen, self.results, self.most_alive = [], [], 0

    def forward(self, batch):
        self.most_alive = max(self.most_alive, sum(ref() is not None for ref in self.results))
        self.seen.append([tuple(sample["image"].shape[1:]) for sample in batch])
        self.switches = (self.semantic_on, self.panoptic_on, self.instance_on, self.semantic_label_map)
        outputs = []
        for sample in batch:
            red = sample["image"][:1].float()
            x = torch.linspace(0, 1, red.shape[-1]).expand_as(red)
            scores = F.interpolate(torch.cat([red, x])[None], (sample["height"], sample["width"]), mode="bilinear")[0]
            self.results.append(weakref.ref(scores))
            outputs.append({"sem_seg": scores})
        return outputs


def sample():
    ramp = torch.arange(WIDTH, dtype=torch.float32).expand(3, HEIGHT, WIDTH).to(torch.uint8).contiguous()
    return {"image": ramp, "height": HEIGHT, "width": WIDTH, "file_name": "ramp.png"}


def test_mirrored_results_are_mirrored_back():
    model = Brightness()
    (result,) = SemanticSegmentorWithTTA(config(sizes=(HEIGHT,)), model)([sample()])
    scores = result["sem_seg"]
    assert scores.shape == (2, HEIGHT, WIDTH)
    assert model.seen == [[(HEIGHT, WIDTH)]] * 2
    # The image's own content comes back in place; what depends on the side of the input averages out.
    assert torch.allclose(scores[0], sample()["image"][0].float())
    assert torch.allclose(scores[1], torch.full((HEIGHT, WIDTH), 0.5), atol=1e-6)


def test_the_result_is_the_plain_mean_over_all_versions():
    cfg, model = config(sizes=(20, 30, 50)), Brightness()
    tta = SemanticSegmentorWithTTA(cfg, model)
    total = 0
    for version in tta.tta_mapper(sample()):
        mirrored = "HFlip" in str(version["transforms"])
        scores = model([version])[0]["sem_seg"]
        total = total + (scores.flip(2) if mirrored else scores) / 6
    assert torch.allclose(tta([sample()])[0]["sem_seg"], total, atol=1e-4)


@pytest.mark.parametrize("sizes", [(20,), (20, 30, 40, 50, 60)])
def test_memory_does_not_grow_with_the_number_of_versions(sizes):
    model = Brightness()
    SemanticSegmentorWithTTA(config(sizes=sizes), model)([sample(), sample()])
    assert len(model.seen) == 4 * len(sizes)
    assert model.most_alive <= 2  # the sum, and of the image before at most its own


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_batches_of_versions_change_nothing(batch_size):
    cfg = config(sizes=(20, 30, 50))
    one = SemanticSegmentorWithTTA(cfg, Brightness())([sample()])[0]["sem_seg"]
    model = Brightness()
    several = SemanticSegmentorWithTTA(cfg, model, batch_size=batch_size)([sample()])[0]["sem_seg"]
    assert torch.allclose(one, several)
    assert max(map(len, model.seen)) == min(batch_size, 6)


def test_only_scores_are_computed_and_the_switches_are_put_back():
    model = Brightness()
    SemanticSegmentorWithTTA(config(), model)([sample()])
    assert model.switches == (True, False, False, False)
    assert (model.semantic_on, model.panoptic_on, model.instance_on, model.semantic_label_map) == (True,) * 4


def test_the_switches_are_put_back_after_an_error():
    model = Brightness()
    broken = {"image": torch.zeros(3, 4, 4, dtype=torch.uint8), "height": "tall", "width": 4}
    with pytest.raises(Exception):  # noqa: B017
        SemanticSegmentorWithTTA(config(), model)([broken])
    assert model.panoptic_on


def test_the_input_is_left_as_it_was():
    given = sample()
    before = copy.deepcopy(given)
    SemanticSegmentorWithTTA(config(), Brightness())([given])
    assert given.keys() == before.keys()
    assert torch.equal(given["image"], before["image"])


def test_an_image_may_be_given_by_its_file_alone(tmp_path):
    import cv2

    image = sample()["image"].permute(1, 2, 0).numpy()
    cv2.imwrite(str(tmp_path / "ramp.png"), image)
    tta = SemanticSegmentorWithTTA(config(), Brightness())
    by_name = tta([{"file_name": str(tmp_path / "ramp.png")}])[0]["sem_seg"]
    assert torch.allclose(by_name, tta([sample()])[0]["sem_seg"])


@pytest.mark.parametrize(("kind", "of"), [("sizes", ()), ("batch_size", 0)])
def test_nothing_to_run_on_is_an_error(kind, of):
    with pytest.raises(ValueError, match=r"MIN_SIZES|batch_size"):
        if kind == "sizes":
            SemanticSegmentorWithTTA(config(sizes=()), Brightness())([sample()])
        else:
            SemanticSegmentorWithTTA(config(), Brightness(), batch_size=of)


def test_the_trainer_scores_semantics_only_and_marks_the_tasks(monkeypatch, tmp_path):
    MetadataCatalog.get("tta_all_tasks").set(evaluator_type="ade20k_panoptic_seg")
    options = ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True]
    cfg = config((20,), True, *options, "DATASETS.TEST", ("tta_all_tasks",), "OUTPUT_DIR", str(tmp_path))
    seen = {}
    monkeypatch.setattr(
        "mask2former.trainer.SemSegEvaluator", lambda name, **kwargs: seen.setdefault("evaluator", name)
    )
    monkeypatch.setattr(
        Trainer,
        "test",
        classmethod(lambda cls, cfg, model, evaluators: seen.update(model=model) or {"sem_seg": {"mIoU": 1}}),
    )
    assert Trainer.test_with_TTA(cfg, Brightness()) == {"sem_seg_TTA": {"mIoU": 1}}
    assert seen["evaluator"] == "tta_all_tasks"
    assert isinstance(seen["model"], SemanticSegmentorWithTTA)
    assert cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON  # the caller's config stays


def test_the_trainer_refuses_a_model_without_semantics():
    cfg = config((20,), True, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False)
    with pytest.raises(ValueError, match=r"SEMANTIC_ON is False"):
        Trainer.test_with_TTA(cfg, SimpleNamespace())
