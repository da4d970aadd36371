"""Every key of add_maskformer2_config changes something, or is documented and reported as a key without effect.

Each proof is a tiny config in which the key is changed, and a probe (what is built, the losses, the results, what the
optimiser does with the parameters, what a mapper gives) that must see it. Probes are seeded; a run repeated without
the change must give the same, so a difference comes from the key.
"""

from functools import cache

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone, build_model
from detectron2.structures import BoxMode, Instances
from PIL import Image
from torch import nn

import mask2former.config
from mask2former.data.mappers import build_mapper
from mask2former.optimizer import build_optimizer
from mask2former.setup_config import WITHOUT_EFFECT, default_config, settings_without_effect

DEFAULTS = dict(mask2former.config._PUBLISHED + mask2former.config._OWN)
DATASET = "config_keys_act"  # of two classes; the first is a thing


class FourConvolutions(Backbone):
    """res2 to res5 with 4 channels each."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Conv2d(3, 4, 4, 4), *(nn.Conv2d(4, 4, 2, 2) for _ in range(3))])

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = {}
        for i, step in enumerate(self.steps):
            features[f"res{i + 2}"] = x = step(x)
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"res{i + 2}": ShapeSpec(channels=4, stride=4 * 2**i) for i in range(4)}


BACKBONE_REGISTRY.register(FourConvolutions)

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.BACKBONE.NAME": "FourConvolutions",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 16,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 16,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
    "DATASETS.TRAIN": (DATASET,),
    "INPUT.MIN_SIZE_TRAIN": (32,),
}
STANDARD = {
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
}
PANOPTIC = {"MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True}
SWIN = {
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 2, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 2, 2],
    "MODEL.SWIN.WINDOW_SIZE": 3,
}
JITTER = {"INPUT.DATASET_MAPPER_NAME": "coco_instance_lsj", "INPUT.IMAGE_SIZE": 32}
CROP = {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute", "INPUT.CROP.SIZE": (8, 8)}


# ---- probes: a config in, numbers and names out


def _built(cfg: CfgNode) -> dict:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_model(_on("meta", cfg)).state_dict().items()}


def _losses(cfg: CfgNode) -> dict:
    model = build_model(cfg).train()
    torch.manual_seed(1)
    return {name: loss.item() for name, loss in model(_batch()).items()}


def _results(cfg: CfgNode) -> list:
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.bias[-1] = -1.0  # else most queries say "no object"
        return [_plain(result) for result in model(_batch())]


def _computed(cfg: CfgNode) -> int:
    """How often an encoder layer computes in forward and backward together."""
    model = build_model(cfg).train()
    calls = []
    layer = model.sem_seg_head.pixel_decoder.transformer.encoder.layers[0]
    layer.norm1.register_forward_pre_hook(lambda *args: calls.append(1))
    sum(model(_batch()).values()).backward()
    return len(calls)


def _optimiser(cfg: CfgNode) -> list:
    net = nn.ModuleDict({"backbone": nn.Linear(1, 1), "queries": nn.Embedding(2, 1)})
    optimizer = build_optimizer(cfg, net)
    return [type(optimizer).__name__, *((g["lr"], g["weight_decay"]) for g in optimizer.param_groups)]


def _sample(cfg: CfgNode) -> list:
    mapper = build_mapper(cfg)
    samples = []
    for _ in range(6):
        sample = mapper(_records[cfg.INPUT.DATASET_MAPPER_NAME])
        samples.append(_plain({"image": sample["image"], "instances": sample["instances"]}))
    return [type(mapper).__name__, samples]


def _backbone(cfg: CfgNode) -> list:
    """Shapes, features of a training pass, and how often each block runs in forward and backward together."""
    backbone = build_backbone(cfg).train()
    calls = []
    for layer in backbone.layers:
        layer.blocks[0].register_forward_pre_hook(lambda *args: calls.append(1))
    torch.manual_seed(1)
    features = backbone(torch.rand(1, 3, 32, 32))
    sum(feature.sum() for feature in features.values()).backward()
    return [{name: tuple(p.shape) for name, p in backbone.state_dict().items()}, len(calls), _plain(features)]


def _backbone_calls(cfg: CfgNode) -> int:
    model = build_model(cfg).eval()
    calls = []
    model.backbone.register_forward_pre_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        model(_batch())
    return len(calls)


# ---- proofs: the probe, the value, and what has to be set for the key to matter

HEAD, FORMER, TEST = "MODEL.SEM_SEG_HEAD.", "MODEL.MASK_FORMER.", "MODEL.MASK_FORMER.TEST."
PROOFS = {
    "INPUT.DATASET_MAPPER_NAME": (_sample, "mask_former_panoptic", {}),
    "INPUT.COLOR_AUG_SSD": (_sample, True, {}),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": (_sample, 0.6, CROP),
    "INPUT.SIZE_DIVISIBILITY": (_sample, 48, {}),
    "INPUT.IMAGE_SIZE": (_sample, 40, JITTER),
    "INPUT.MIN_SCALE": (_sample, 1.5, JITTER),
    "INPUT.MAX_SCALE": (_sample, 0.2, JITTER),
    "SOLVER.OPTIMIZER": (_optimiser, "SGD", {}),
    "SOLVER.BACKBONE_MULTIPLIER": (_optimiser, 0.5, {}),
    "SOLVER.WEIGHT_DECAY_EMBED": (_optimiser, 0.5, {}),
    FORMER + "DEEP_SUPERVISION": (_losses, False, {}),
    FORMER + "NO_OBJECT_WEIGHT": (_losses, 0.5, {}),
    FORMER + "CLASS_WEIGHT": (_losses, 3.0, {}),
    FORMER + "DICE_WEIGHT": (_losses, 3.0, {}),
    FORMER + "MASK_WEIGHT": (_losses, 3.0, {}),
    FORMER + "NHEADS": (_losses, 2, {}),
    FORMER + "DROPOUT": (_losses, 0.5, STANDARD),
    FORMER + "DIM_FEEDFORWARD": (_built, 24, {}),
    FORMER + "ENC_LAYERS": (_built, 1, STANDARD),
    FORMER + "DEC_LAYERS": (_built, 2, {}),
    FORMER + "PRE_NORM": (_losses, True, {}),
    FORMER + "HIDDEN_DIM": (_built, 64, {}),
    FORMER + "NUM_OBJECT_QUERIES": (_built, 7, {}),
    FORMER + "TRANSFORMER_IN_FEATURE": (_losses, "res4", STANDARD),
    FORMER + "ENFORCE_INPUT_PROJ": (_built, True, {}),
    FORMER + "SIZE_DIVISIBILITY": (_results, 64, {}),
    FORMER + "TRANSFORMER_DECODER_NAME": (
        _built,
        "StandardTransformerDecoder",
        {FORMER + "TRANSFORMER_IN_FEATURE": "pixel_embedding"},
    ),
    FORMER + "TRAIN_NUM_POINTS": (_losses, 20, {}),
    FORMER + "OVERSAMPLE_RATIO": (_losses, 5.0, {}),
    FORMER + "IMPORTANCE_SAMPLE_RATIO": (_losses, 0.25, {}),
    FORMER + "ACTIVATION_CHECKPOINTING": (_computed, True, {}),
    TEST + "SEMANTIC_ON": (_results, False, {}),
    TEST + "INSTANCE_ON": (_results, True, {}),
    TEST + "PANOPTIC_ON": (_results, True, {}),
    TEST + "OBJECT_MASK_THRESHOLD": (_results, 0.999, PANOPTIC),
    TEST + "OVERLAP_THRESHOLD": (_results, 0.999, PANOPTIC),
    TEST + "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": (_results, True, {}),
    TEST + "PAD_TO_LARGEST": (_backbone_calls, True, {}),
    TEST + "SEMANTIC_LABEL_MAP": (_results, True, {}),
    TEST + "PRECISION": (_results, "bfloat16", {}),
    HEAD + "MASK_DIM": (_built, 24, {}),
    HEAD + "TRANSFORMER_ENC_LAYERS": (_built, 2, {}),
    HEAD + "PIXEL_DECODER_NAME": (_built, "BasePixelDecoder", {}),
    HEAD + "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": (_built, ["res2", "res3", "res4", "res5"], {}),
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": (_backbone, 64, {**SWIN, "MODEL.SWIN.APE": True}),
    "MODEL.SWIN.PATCH_SIZE": (_backbone, 2, SWIN),
    "MODEL.SWIN.EMBED_DIM": (_backbone, 16, SWIN),
    "MODEL.SWIN.DEPTHS": (_backbone, [2, 1, 1, 1], SWIN),
    "MODEL.SWIN.NUM_HEADS": (_backbone, [2, 2, 2, 2], SWIN),
    "MODEL.SWIN.WINDOW_SIZE": (_backbone, 4, SWIN),
    "MODEL.SWIN.MLP_RATIO": (_backbone, 2.0, SWIN),
    "MODEL.SWIN.QKV_BIAS": (_backbone, False, SWIN),
    "MODEL.SWIN.QK_SCALE": (_backbone, 9.0, SWIN),
    "MODEL.SWIN.DROP_RATE": (_backbone, 0.5, SWIN),
    "MODEL.SWIN.ATTN_DROP_RATE": (_backbone, 0.5, SWIN),
    "MODEL.SWIN.DROP_PATH_RATE": (_backbone, 0.9, SWIN),
    "MODEL.SWIN.APE": (_backbone, True, SWIN),
    "MODEL.SWIN.PATCH_NORM": (_backbone, False, SWIN),
    "MODEL.SWIN.OUT_FEATURES": (_backbone, ["res3", "res5"], SWIN),
    "MODEL.SWIN.USE_CHECKPOINT": (_backbone, True, SWIN),
}


@pytest.fixture(scope="module", autouse=True)
def record(tmp_path_factory):
    """One image with semantic, panoptic and instance labels: class 0 on the left, 1 on the right."""
    folder = tmp_path_factory.mktemp("config_keys")
    left = np.zeros((32, 48), dtype=np.uint8)
    left[:, 24:] = 1
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(folder / "image.png")
    Image.fromarray(left).save(folder / "semantic.png")
    Image.fromarray(np.stack([left + 1, left * 0, left * 0], -1)).save(folder / "panoptic.png")
    MetadataCatalog.get(DATASET).set(thing_dataset_id_to_contiguous_id={1: 0}, ignore_label=255)
    common = {"file_name": str(folder / "image.png"), "height": 32, "width": 48}
    square = {"bbox": [4, 4, 24, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    _records["mask_former_semantic"] = {**common, "sem_seg_file_name": str(folder / "semantic.png")}
    _records["mask_former_panoptic"] = {
        **common,
        "pan_seg_file_name": str(folder / "panoptic.png"),
        "segments_info": [{"id": i + 1, "category_id": i, "iscrowd": 0} for i in range(2)],
    }
    _records["coco_instance_lsj"] = {
        **common, "annotations": [{**square, "segmentation": [[4, 4, 28, 4, 28, 24, 4, 24]]}]
    }  # fmt: skip
    yield
    MetadataCatalog.remove(DATASET)
    _before.cache_clear()


@pytest.mark.parametrize("key", DEFAULTS)
def test_the_key_changes_something_or_is_documented_to_change_nothing(key):
    if key in WITHOUT_EFFECT:
        assert key not in PROOFS
        cfg = _config({key: DEFAULTS[key] * 2})
        assert _seeded(_losses, cfg) == _before(_losses, ())
        assert [line for line in settings_without_effect(cfg) if line.startswith(f"{key} = {DEFAULTS[key] * 2} has no")]
        return
    probe, value, around = PROOFS[key]
    before = _before(probe, tuple((name, _hashable(setting)) for name, setting in around.items()))
    after = _config({**around, key: value})
    assert value != _look_up(_config(around), key)
    assert _seeded(probe, after) != before
    assert not [line for line in settings_without_effect(after) if line.startswith(f"{key} = ")]


def test_proofs_and_keys_without_effect_are_about_keys_that_exist():
    assert set(PROOFS) | set(WITHOUT_EFFECT) == set(DEFAULTS)


# ---- helpers

_records: dict[str, dict] = {}


@cache
def _before(probe, around: tuple) -> object:
    """What the probe sees without the change; twice, to know that it is repeatable."""
    cfg = _config(dict(around))
    seen = _seeded(probe, cfg)
    assert _seeded(probe, cfg) == seen, "the probe is not repeatable"
    return seen


def _seeded(probe, cfg: CfgNode) -> object:
    torch.manual_seed(0)
    np.random.seed(0)
    return probe(cfg)


def _config(changes: dict) -> CfgNode:
    cfg = default_config()
    cfg.merge_from_list([word for pair in {**TINY, **changes}.items() for word in pair])
    return cfg


def _on(device: str, cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = device
    return cfg


def _hashable(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _look_up(cfg: CfgNode, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _batch() -> list[dict]:
    """Two images of different sizes with one square and two."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for classes, size in (([1], (32, 40)), ([0, 1], (64, 96))):
        instances = Instances(size)
        instances.gt_classes = torch.tensor(classes)
        instances.gt_masks = torch.zeros(len(classes), *size, dtype=torch.bool)
        for i in range(len(classes)):
            instances.gt_masks[i, 4 : 20 + i, 8 * i : 8 * i + 16] = True
        image = torch.randint(0, 256, (3, *size), generator=generator).float()
        batch.append({"image": image, "instances": instances, "height": size[0] + 7, "width": size[1] + 5})
    return batch


def _plain(value: object) -> object:
    """Tensors as bytes with type and shape, Instances as dicts: comparable by ==."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes())
    if isinstance(value, Instances):
        return {name: _plain(getattr(field, "tensor", field)) for name, field in value.get_fields().items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
