"""MaskFormer end to end on a tiny configuration: losses, results, batches, targets of every kind, clear errors."""

import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.structures import BitMasks, Instances, PolygonMasks

from mask2former import add_maskformer2_config
from mask2former.model import mask_tensor, training_target

DATASET = "tests_model_things_and_stuff"
MetadataCatalog.get(DATASET).set(thing_dataset_id_to_contiguous_id={7: 0, 9: 1})


def _model(*options):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    settings = {
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": (DATASET,),
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.PIXEL_STD": [58.0, 57.0, 57.0],
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
        "MODEL.MASK_FORMER.DEC_LAYERS": 4,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
    }
    cfg.merge_from_list([part for setting in settings.items() for part in setting])
    cfg.merge_from_list(list(options))
    return build_model(cfg)


def _image(height=60, width=90):
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


def _sample(labels, height=60, width=90):
    instances = Instances((height, width))
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    instances.gt_masks = torch.rand(len(labels), height, width) > 0.5
    return {"image": _image(height, width), "instances": instances, "file_name": "pictures/1.jpg"}


def _expect_equal(ours, other):
    torch.testing.assert_close(ours["sem_seg"], other["sem_seg"], atol=1e-4, rtol=1e-3)
    assert (ours["panoptic_seg"][0] != other["panoptic_seg"][0]).sum() <= 3
    order = [result["instances"].scores.argsort() for result in (ours, other)]
    scores = [result["instances"].scores[index] for result, index in zip((ours, other), order)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_step_gives_weighted_losses_and_gradients(precision):
    model = _model("MODEL.MASK_FORMER.CLASS_WEIGHT", 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        losses = model([_sample([0, 3]), _sample([1], 70, 50)])
    names = {f"loss_{name}{suffix}" for name in ("ce", "mask", "dice") for suffix in ("", "_0", "_1", "_2")}
    assert set(losses) == names
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    # Random weights: about 2.0 (CLASS_WEIGHT) times ln 5 and 20.0 (MASK_WEIGHT) times ln 2, and more.
    assert losses["loss_ce"] > 2 * 1.2 and losses["loss_mask"] > 20 * 0.5
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("norm", "layout"), [("FrozenBN", torch.channels_last), ("BN", torch.contiguous_format)])
def test_channels_come_last_in_training_unless_a_batch_norm_learns(norm, layout, monkeypatch):
    monkeypatch.setattr("mask2former.model.CHANNELS_LAST_PIXELS", 64 * 96)
    model = _model("MODEL.RESNETS.NORM", norm)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model([_sample([0, 3])])
    model.eval()([_sample([0, 3])])
    training, inference = seen
    assert training.is_contiguous(memory_format=layout)
    assert inference.is_contiguous(memory_format=torch.channels_last)


def test_channels_come_first_where_turning_the_weights_takes_longer_than_is_gained():
    model = _model().eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for size in ((160, 192), (256, 256)):
        model([{"image": _image(*size)}])
    assert [images.is_contiguous(memory_format=torch.channels_last) for images in seen] == [False, True]


def test_bfloat16_losses_follow_float32():
    model, batch, totals = _model().train(), [_sample([0, 3]), _sample([1, 1])], []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            totals.append(float(sum(model(batch).values()).detach()))
    assert totals[1] == pytest.approx(totals[0], rel=0.02)


def test_images_without_instances_still_train():
    model = _model()
    losses = model([_sample([]), _sample([])])
    assert losses["loss_mask"] == 0 and losses["loss_ce"] > 0
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_without_deep_supervision_only_the_last_layer_has_losses():
    losses = _model("MODEL.MASK_FORMER.DEEP_SUPERVISION", False)([_sample([0])])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}


def test_a_few_steps_learn_one_image():
    model = _model()
    sample = _sample([0, 2], 64, 64)
    sample["instances"].gt_masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    sample["instances"].gt_masks[0, :, :32] = True
    sample["instances"].gt_masks[1, :, 32:] = True
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    for _ in range(12):
        total = sum(model([sample, sample]).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.6 * totals[0]


@torch.no_grad()
def test_results_have_the_published_form():
    model = _model("TEST.DETECTIONS_PER_IMAGE", 100).eval()
    plain, resized = model([{"image": _image()}, {"image": _image(), "height": 120, "width": 100}])
    assert plain["sem_seg"].shape == (4, 60, 90) and plain["sem_seg"].dtype == torch.float32
    assert resized["sem_seg"].shape == (4, 120, 100)
    ids, segments = resized["panoptic_seg"]
    assert ids.shape == (120, 100) and ids.dtype == torch.int32
    assert set(ids.unique().tolist()) - {0} == {segment["id"] for segment in segments}
    for segment in segments:
        assert segment["isthing"] == (segment["category_id"] in (0, 1))
    instances = resized["instances"]
    assert instances.image_size == (120, 100)
    assert set(instances.pred_classes.tolist()) <= {0, 1}  # things alone, where panoptic results are on
    assert instances.pred_masks.shape == (len(instances), 120, 100)
    expected = BitMasks(instances.pred_masks).get_bounding_boxes().tensor
    assert torch.equal(instances.pred_boxes.tensor, expected)


@torch.no_grad()
def test_results_that_are_off_are_left_out():
    model = _model("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False).eval()
    result = model([{"image": _image()}])[0]
    assert set(result) == {"instances"}
    assert len(result["instances"]) == 8 * 4  # all there are: DETECTIONS_PER_IMAGE is 100


@torch.no_grad()
def test_an_image_scores_the_same_alone_and_in_a_batch():
    model = _model().eval()
    images = [_image(60, 90), _image(128, 100), _image(64, 96)]
    together = model([{"image": image} for image in images])
    for image, result in zip(images, together):
        _expect_equal(model([{"image": image}])[0], result)


@torch.no_grad()
def test_padding_to_the_largest_is_the_published_behaviour_and_changes_scores():
    model = _model("MODEL.MASK_FORMER.TEST.PAD_TO_LARGEST", True).eval()
    small, large = _image(60, 90), _image(128, 100)
    alone = model([{"image": small}])[0]
    batched = model([{"image": small}, {"image": large}])[0]
    assert not torch.allclose(alone["sem_seg"], batched["sem_seg"], atol=1e-3)
    # The same numbers as an image padded by hand, whose result is then cut: zero after normalisation is the mean.
    mean = model.pixel_mean.expand(3, 128, 128).clone()
    mean[:, :60, :90] = small
    by_hand = model([{"image": mean}])[0]
    torch.testing.assert_close(by_hand["sem_seg"][:, :60, :90], batched["sem_seg"], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_label_map_is_the_best_of_the_scores():
    model = _model().eval()
    image = _image()
    scores = model([{"image": image}])[0]["sem_seg"]
    model.semantic_label_map = True
    labels = model([{"image": image}])[0]["sem_seg"]
    assert torch.equal(labels, scores.argmax(0))


def test_empty_training_datasets_are_legal_for_inference(caplog):
    test = ["DATASETS.TRAIN", (), "DATASETS.TEST", (DATASET,)]
    with caplog.at_level(logging.WARNING, logger="mask2former"):
        assert _model(*test).thing_classes() == {0, 1}
        assert _model("DATASETS.TRAIN", (), "DATASETS.TEST", ()).thing_classes() == {0, 1, 2, 3}
    assert DATASET in caplog.text and "every class" in caplog.text


def test_a_dataset_that_does_not_name_its_things_is_explained():
    model = _model("DATASETS.TRAIN", ("tests_model_nameless",)).eval()
    with pytest.raises(ValueError, match=r"tests_model_nameless.*thing_dataset_id_to_contiguous_id"), torch.no_grad():
        model([{"image": _image()}])


@pytest.mark.parametrize("label", [4, 255, -1])
def test_a_label_out_of_range_is_refused_with_the_file(label):
    with pytest.raises(ValueError, match=rf"pictures/1.jpg.*\[{label}\].*0 ... 3"):
        _model()([_sample([0, label])])


def test_training_without_instances_is_explained():
    with pytest.raises(ValueError, match="instances"):
        _model()([{"image": _image()}])


def test_an_image_with_the_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 60, 90\)"):
        _model().eval()([{"image": _image()[:1]}])


def test_masks_of_every_kind_become_tensors():
    expected = torch.zeros(1, 6, 8, dtype=torch.bool)
    expected[0, 1:4, 2:6] = True
    square = [[np.array([2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0])]]
    for masks in (expected, expected.to(torch.uint8), BitMasks(expected), PolygonMasks(square)):
        instances = Instances((6, 8), gt_classes=torch.tensor([0]), gt_masks=masks)
        assert torch.equal(mask_tensor(instances).bool(), expected)
    assert mask_tensor(Instances((6, 8), gt_classes=torch.zeros(0, dtype=torch.int64))).shape == (0, 6, 8)


def test_targets_are_padded_like_the_batch():
    target = training_target(_sample([2]), 4, (64, 96), torch.device("cpu"))
    assert target["masks"].shape == (1, 64, 96) and target["masks"].dtype == torch.bool
    assert not target["masks"][:, 60:].any() and not target["masks"][:, :, 90:].any()
