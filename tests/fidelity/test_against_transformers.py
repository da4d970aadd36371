"""Our model against the independent one in transformers: the same weights, images, targets and random points.

Measured in float32 on images padded from odd sizes; transformers does not pad by itself, and knows no mask either.
"""

import cases
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mask2former.checkpoint.convert import to_hub
from mask2former.checkpoint.huggingface import to_detectron2
from mask2former.inference import Frame, instance_inference, panoptic_inference, semantic_inference
from mask2former.modeling.matcher import HungarianMatcher

transformers = pytest.importorskip("transformers")
NAMES = {"loss_cross_entropy": "loss_ce"}
CASES = {
    "swin": cases.CASES["coco_panoptic_swin_small"],
    "resnet": cases.CASES["ade20k_panoptic_r50"],
    # Weights of classes, masks and dice that are all unlike the published ones.
    "other loss weights": cases.Case(
        "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
        options=(
            "MODEL.MASK_FORMER.CLASS_WEIGHT", 4.5,
            "MODEL.MASK_FORMER.MASK_WEIGHT", 1.25,
            "MODEL.MASK_FORMER.DICE_WEIGHT", 3.0,
            "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.35,
        ),
    ),
}  # fmt: skip


class Pair:
    """One case on both sides: losses by our names, gradients by our names, logits of every layer."""

    def __init__(self, case, folder, narrow=True):
        cfg = cases.config(case, narrow=narrow)
        self.ours = cases.built(cfg)
        torch.save({"model": self.ours.state_dict()}, folder / "model.pth")
        to_hub(str(folder / "model.pth"), folder / "hub", cfg)
        self.theirs, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
            folder / "hub",
            output_loading_info=True,
            train_num_points=cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS,
            class_weight=cfg.MODEL.MASK_FORMER.CLASS_WEIGHT,
            mask_weight=cfg.MODEL.MASK_FORMER.MASK_WEIGHT,
            dice_weight=cfg.MODEL.MASK_FORMER.DICE_WEIGHT,
            no_object_weight=cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT,
        )
        assert not info["missing_keys"] and not info["mismatched_keys"]
        batch = cases.samples(case, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        self.our_answers = cases.trained(self.ours, batch)
        # Frozen here by FrozenBN; there by evaluation mode, in which losses come all the same.
        self.theirs.eval()
        images = [self.ours.normalized(sample) for sample in batch]
        size = [max(image.shape[i] for image in images) for i in (1, 2)]
        size = [-(-side // 32) * 32 for side in size]
        pad = lambda x: F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]))
        self.pixels = torch.stack([pad(image) for image in images])
        instances = [sample["instances"] for sample in batch]
        self.masks = [pad(x.gt_masks.float()) for x in instances]
        self.classes = [x.gt_classes for x in instances]
        caught = []
        hook = self.theirs.criterion.register_forward_hook(lambda module, args, result: caught.append(result))
        with cases.shared_random_numbers():
            output = self.theirs(
                pixel_values=self.pixels,
                mask_labels=self.masks,
                class_labels=self.classes,
                output_auxiliary_logits=True,
            )
        hook.remove()
        # The first call's dict is the outermost's; the hook runs innermost first.
        self.their_losses = {rename(name): float(value.detach()) for name, value in caught[-1].items()}
        output.loss.backward()
        gradients = {name: p.grad for name, p in self.theirs.named_parameters() if p.grad is not None}
        self.their_gradients = to_detectron2(gradients)
        self.their_layers = [
            (layer["class_queries_logits"].detach(), layer["masks_queries_logits"].detach())
            for layer in [*output.auxiliary_logits, output]
        ]
        with torch.no_grad():
            self.our_layers = cases.layers_of(self.ours.sem_seg_head(self.ours.backbone(self.pixels)))

    def layer_differences(self):
        """(class logits, mask logits), largest absolute difference of each layer."""
        pairs = zip(self.our_layers, self.their_layers, strict=True)
        return [tuple(float((a - b).abs().max()) for a, b in zip(x, y, strict=True)) for x, y in pairs]

    def loss_differences(self):
        ours = {name.removeprefix("loss/"): float(x) for name, x in self.our_answers.items() if name.startswith("loss")}
        assert set(ours) == set(self.their_losses)
        return {name: abs(ours[name] - value) for name, value in self.their_losses.items()}

    def gradient_differences(self):
        """By name, relative to the largest entry; a gradient that is only rounding is measured by the model's scale."""
        ours = {name[9:]: torch.from_numpy(x) for name, x in self.our_answers.items() if name.startswith("gradient/")}
        scale = max(float(x.abs().max()) for x in ours.values())
        assert set(ours) <= set(self.their_gradients)
        return {
            name: float((x - self.their_gradients[name]).abs().max() / x.abs().max().clamp(min=1e-5 * scale))
            for name, x in ours.items()
        }


def rename(name):
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    return Pair(CASES[request.param], tmp_path_factory.mktemp("pair"))


def test_class_logits_and_masks_of_every_layer(pair):
    differences = pair.layer_differences()
    assert len(differences) == 10
    assert all(masks.std() > 0.1 and classes.std() > 0.1 for classes, masks in pair.our_layers)
    assert np.max(differences) < 1e-4, differences


def test_losses_of_every_layer(pair):
    differences = pair.loss_differences()
    assert len(differences) == 30
    relative = {name: value / max(1.0, pair.their_losses[name]) for name, value in differences.items()}
    assert max(relative.values()) < 1e-5, relative


def test_gradients_of_all_parameters(pair):
    differences = pair.gradient_differences()
    trainable = {name for name, parameter in pair.ours.named_parameters() if parameter.requires_grad}
    assert set(differences) == trainable
    worst = max(differences, key=differences.get)
    assert differences[worst] < 1e-4, (worst, differences[worst])


def test_matching(pair):
    """Every layer gives each segment the same query."""
    layers = [{"pred_logits": classes, "pred_masks": masks} for classes, masks in pair.our_layers]
    targets = [{"labels": labels, "masks": masks} for labels, masks in zip(pair.classes, pair.masks, strict=True)]
    with cases.shared_random_numbers():
        ours = pair.ours.criterion.matcher.match_layers(layers, targets)
    with cases.shared_random_numbers():
        matcher = pair.theirs.criterion.matcher
        theirs = [matcher(masks, classes, pair.masks, pair.classes) for classes, masks in pair.our_layers]
    for layer, their_layer in zip(ours, theirs, strict=True):
        for match, their_match in zip(layer, their_layer, strict=True):
            assert [x.tolist() for x in match] == [x.tolist() for x in their_match]


# What comes after the logits. transformers resizes masks to 384 x 384 whatever the image was, so the two agree where
# the model's input has that size.

FRAME = Frame(padded=(384, 384), image=(384, 384), output=(384, 384))


@pytest.fixture(scope="module")
def processor():
    return transformers.Mask2FormerImageProcessorPil()


def logits(num_queries=6, num_classes=4):
    """Smooth masks and sure classes: (Q, K+1) and (Q, 96, 96)."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(1, num_queries, 5, 5, generator=generator)
    masks = 6 * F.interpolate(coarse, (96, 96), mode="bicubic")[0]
    return 4 * torch.randn(num_queries, num_classes + 1, generator=generator), masks


def as_theirs(class_logits, mask_logits):
    output = transformers.models.mask2former.modeling_mask2former.Mask2FormerForUniversalSegmentationOutput
    return output(class_queries_logits=class_logits[None], masks_queries_logits=mask_logits[None].clone())


@pytest.mark.parametrize("size", [(384, 384), (201, 333)])
def test_semantic_scores_are_equal(processor, size):
    classes, masks = logits()
    ours = semantic_inference(classes, masks, FRAME._replace(output=size), resize_masks=False, label_map=False)
    theirs = processor.post_process_semantic_segmentation(
        as_theirs(classes, masks), target_sizes=[size], return_segmentation_scores=True
    )[0]
    assert (ours - theirs.segmentation_scores).abs().max() < 1e-5
    assert (ours.argmax(0) != theirs.segmentation).sum() == 0


def test_instances_are_equal_at_the_models_size(processor):
    classes, masks = logits()
    ours = instance_inference(classes, masks, FRAME, topk=6)
    theirs = processor.post_process_instance_segmentation(
        as_theirs(classes, masks), threshold=0.3, return_binary_maps=True
    )[0]
    order = [i for i in ours.scores.argsort(descending=True).tolist() if ours.scores[i] >= 0.3]
    segments = theirs["segments_info"]
    their_order = sorted(range(len(segments)), key=lambda i: -segments[i]["score"])
    assert len(order) == len(their_order) >= 3
    for i, j in zip(order, their_order, strict=True):
        assert int(ours.classes[i]) == segments[j]["label_id"]
        assert float(ours.scores[i]) == pytest.approx(segments[j]["score"], abs=1e-6)
        assert torch.equal(ours.masks[i], theirs["segmentation"][j].bool())


def stripes(*columns, height=96, sure=8.0):
    """One mask per range of columns."""
    masks = torch.full((len(columns), height, 96), -sure)
    for mask, (start, stop) in zip(masks, columns, strict=True):
        mask[:, start:stop] = sure
    return masks


def sure_classes(*labels, num_classes=4):
    return 20 * F.one_hot(torch.tensor(labels), num_classes + 1).float()


def panoptic(processor, classes, masks, things, **thresholds):
    """(ids, {id: class}) of ours and of theirs."""
    ids, segments = panoptic_inference(
        classes, masks, FRAME, things=things, object_mask_threshold=0.5, overlap_threshold=0.5
    )
    theirs = processor.post_process_panoptic_segmentation(
        as_theirs(classes, masks),
        threshold=0.5,
        overlap_mask_area_threshold=0.5,
        label_ids_to_fuse=set(range(4)) - things,
    )[0]
    ours = ids, [(segment["id"], segment["category_id"]) for segment in segments]
    return ours, (theirs["segmentation"], [(s["id"], s["label_id"]) for s in theirs["segments_info"]])


def test_panoptic_maps_are_equal_where_every_pixel_is_someones(processor):
    classes, masks = sure_classes(0, 3, 0), stripes((0, 30), (30, 60), (60, 96))
    ours, theirs = panoptic(processor, classes, masks, things={0, 1})
    assert ours[1] == theirs[1] == [(1, 0), (2, 3), (3, 0)]
    # At the seams two masks are below one half; there only transformers gives the pixel away.
    void = ours[0] == 0
    assert void.float().mean() < 0.02 and torch.equal(ours[0][~void], theirs[0][~void])


def test_a_pixel_that_no_mask_covers_is_void_here_and_someones_there(processor):
    """The paper's rule, and the published code's: a segment is where its query wins *and* its mask says yes."""
    classes, masks = sure_classes(0, 1), stripes((0, 40), (60, 96))
    ours, theirs = panoptic(processor, classes, masks, things={0, 1})
    assert (ours[0][:, 200] == 0).all()
    assert (theirs[0] != 0).all()


def test_fused_segments_keep_their_own_ids_here(processor):
    """Merging stuff, transformers steps its counter back: the next segment takes the id of another one."""
    classes, masks = sure_classes(2, 0, 2, 1), stripes((0, 24), (24, 48), (48, 72), (72, 96))
    ours, theirs = panoptic(processor, classes, masks, things={0, 1})
    assert ours[1] == [(1, 2), (2, 0), (3, 1)]
    assert int(ours[0][0, 10]) == int(ours[0][0, 240]) == 1 and int(ours[0][0, 340]) == 3
    # Listed twice, and the thing of class 1 shares the id of the thing of class 0.
    assert theirs[1] == [(1, 2), (2, 0), (1, 2), (2, 1)]


def test_instances_at_another_size_are_smooth_here(processor):
    """Here logits are resized and then cut; there the mask is cut at 384 x 384 and resized by the nearest pixel."""
    classes, masks = logits()
    size = (1000, 700)
    ours = instance_inference(classes, masks, FRAME._replace(output=size), topk=6)
    theirs = processor.post_process_instance_segmentation(
        as_theirs(classes, masks), threshold=0.3, return_binary_maps=True, target_sizes=[size]
    )[0]
    best = int(ours.scores.argmax())
    their_best = max(range(len(theirs["segments_info"])), key=lambda j: theirs["segments_info"][j]["score"])
    other = theirs["segmentation"][their_best].bool()
    differing = (ours.masks[best] != other).float().mean()
    assert 0 < differing < 0.01


def test_the_matcher_uses_the_class_weight_it_is_given():
    """Two queries, one segment: by class the first is better, by mask the second."""
    prediction = {
        "pred_logits": torch.tensor([[[4.0, 0.0], [0.0, 0.0]]]),
        "pred_masks": torch.stack([torch.full((8, 8), -1.0), torch.full((8, 8), 1.0)])[None],
    }
    target = [{"labels": torch.tensor([0]), "masks": torch.ones(1, 8, 8, dtype=torch.bool)}]
    matched = lambda weight: int(HungarianMatcher(weight, 1.0, 0.0, num_points=50)(prediction, target)[0][0][0])
    assert (matched(1.0), matched(10.0)) == (1, 0)
