"""Registries and builders, SemanticSegmentor, post-processing and the mapper of test-time augmentation."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    DatasetMapperTTA,
    SemanticSegmentor,
    build_backbone,
    build_model,
    build_sem_seg_head,
)
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import nn


@BACKBONE_REGISTRY.register()
class IdentityBackboneForTests(Backbone):
    """The image is its only feature map."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self._out_features = ["image"]
        self._out_feature_channels = {"image": input_shape.channels}
        self._out_feature_strides = {"image": 1}

    def forward(self, x):
        return {"image": x}

    @property
    def size_divisibility(self):
        return 4


@SEM_SEG_HEADS_REGISTRY.register()
class FirstChannelsHeadForTests(nn.Module):
    """The channels of the image are the scores; the loss counts labels."""

    ignore_value = 255

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.channels = input_shape["image"].channels

    def forward(self, features, targets=None):
        if self.training:
            return None, {"loss": (targets != self.ignore_value).sum().float()}
        return features["image"], {}


@BACKBONE_REGISTRY.register()
def no_backbone_for_tests(cfg, input_shape):
    return nn.Identity()


def config():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "IdentityBackboneForTests"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "FirstChannelsHeadForTests"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]
    return cfg


def test_builders_look_up_names():
    cfg = config()
    backbone = build_backbone(cfg)
    assert backbone.output_shape() == {"image": ShapeSpec(channels=3, stride=1)}
    assert build_backbone(cfg, ShapeSpec(channels=5)).output_shape()["image"].channels == 5
    assert build_sem_seg_head(cfg, backbone.output_shape()).channels == 3
    assert isinstance(build_model(cfg), SemanticSegmentor)
    assert META_ARCH_REGISTRY.get("SemanticSegmentor") is SemanticSegmentor


def test_what_is_no_backbone_is_refused():
    cfg = config()
    cfg.MODEL.BACKBONE.NAME = "no_backbone_for_tests"
    with pytest.raises(AssertionError):
        build_backbone(cfg)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_cuda_in_the_config_means_the_cpu_where_there_is_no_cuda(caplog):
    import detectron2

    if not getattr(detectron2, "EMBEDDED", False):
        pytest.skip("upstream raises")
    cfg = config()
    cfg.MODEL.DEVICE = "cuda"
    with caplog.at_level("INFO"):
        assert build_model(cfg).device.type == "cpu"
    assert "using the CPU" in caplog.text


def test_semantic_segmentor_normalises_and_answers_at_the_asked_size():
    model = build_model(config()).eval()
    image = torch.randint(0, 255, (3, 6, 10))
    other = torch.randint(0, 255, (3, 5, 7))
    with torch.no_grad():
        first, second = model([{"image": image}, {"image": other, "height": 10, "width": 14}])
    mean = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    torch.testing.assert_close(first["sem_seg"], (image - mean) / 2)
    assert second["sem_seg"].shape == (3, 10, 14)


def test_padding_of_labels_is_ignored_in_training():
    model = build_model(config()).train()
    batch = [{"image": torch.zeros(3, h, w), "sem_seg": torch.ones(h, w).long()} for h, w in ((6, 10), (5, 7))]
    assert model(batch) == {"loss": 6 * 10 + 5 * 7}


def test_postprocessing_crops_then_resizes():
    scores = torch.full((2, 8, 8), 9.0)
    scores[:, :4, :6] = torch.arange(6.0)
    same = sem_seg_postprocess(scores, (4, 6), 4, 6)
    assert torch.equal(same, torch.arange(6.0).expand(2, 4, 6))
    larger = sem_seg_postprocess(scores, (4, 6), 8, 12)
    # pixel centres: 0, 0, .25, .75 ... in units of the old pixels, none of the padding's 9
    assert larger.shape == (2, 8, 12)
    assert larger[0, 0, :4].tolist() == pytest.approx([0, 0.25, 0.75, 1.25]) and larger.max() == 5


def test_tta_makes_each_size_plain_and_mirrored():
    image = torch.randint(0, 255, (3, 20, 30), dtype=torch.uint8)
    record = {"image": image, "height": 40, "width": 60, "file_name": "a.jpg", "list": [1]}
    versions = DatasetMapperTTA([10, 20], 45, True)(record)
    assert [tuple(v["image"].shape) for v in versions] == [(3, 10, 15)] * 2 + [(3, 20, 30)] * 2
    assert torch.equal(versions[2]["image"], image) and torch.equal(versions[3]["image"], image.flip(2))
    assert all(v["file_name"] == "a.jpg" and v["height"] == 40 for v in versions)
    versions[0]["list"].append(2)
    assert versions[1]["list"] == record["list"] == [1]
    # a point of the original image, where it lies in each version
    points = [v["transforms"].apply_coords(np.array([[60.0, 10.0]])).tolist() for v in versions]
    assert points == [[[15, 2.5]], [[0, 2.5]], [[30, 5]], [[0, 5]]]
    back = versions[1]["transforms"].inverse().apply_coords(np.array([[0.0, 2.5]]))
    assert back.tolist() == [[60, 10]]


def test_tta_reads_the_config():
    cfg = get_cfg()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (10,), 12, False
    versions = DatasetMapperTTA(cfg)({"image": torch.zeros(3, 20, 40, dtype=torch.uint8), "height": 20, "width": 40})
    assert [tuple(v["image"].shape) for v in versions] == [(3, 6, 12)]
