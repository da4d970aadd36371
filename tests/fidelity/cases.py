"""Models, images and random numbers that two implementations of Mask2Former can be run on alike.

Only names that both share are used: config keys, parameter names, `build_model`. Weights come from their names
(`golden/fill.py`), images and targets from a seed, and random points from one stream for each number of points, so
that it does not matter in which order an implementation draws those of the matcher and those of the losses.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.structures import Instances
from torch import Tensor, nn

from mask2former import SemanticSegmentorWithTTA, add_maskformer2_config

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("fill", ROOT / "tests" / "golden" / "fill.py")
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)

# A narrow model of the published structure: fast enough for every change.
NARROW = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 64,
    "MODEL.SEM_SEG_HEAD.MASK_DIM", 64,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 2,
    "MODEL.MASK_FORMER.HIDDEN_DIM", 64,
    "MODEL.MASK_FORMER.NHEADS", 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 96,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 40,
    "MODEL.SWIN.EMBED_DIM", 16,
    "MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8],
]  # fmt: skip
COMMON = [
    "MODEL.DEVICE", "cpu",
    "MODEL.SWIN.DROP_PATH_RATE", 0.0,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 200,
    # Low, as weights that are not trained are seldom sure.
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.05,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.1,
]  # fmt: skip
MASKFORMER = [
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5",
    "MODEL.MASK_FORMER.DEC_LAYERS", 4,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    config: str
    options: tuple = ()
    sizes: tuple = ((65, 97), (96, 70))  # of the images: none a multiple of 32, no two alike
    objects: tuple = (5, 3)
    # Chosen such that nothing hangs on rounding: no resized mask logit is near the attention mask's
    # threshold, and no two candidates for the uncertain points are alike.
    seed: int = 0


CASES = {
    "coco_panoptic_r50": Case("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", seed=10),
    "coco_panoptic_swin_small": Case("coco/panoptic-segmentation/swin/maskformer2_swin_small_bs16_50ep.yaml"),
    "coco_instance_swin_tiny": Case(
        "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml", objects=(0, 4)
    ),
    "coco_instance_r101": Case("coco/instance-segmentation/maskformer2_R101_bs16_50ep.yaml", seed=50),
    "ade20k_semantic_swin_base": Case(
        "ade20k/semantic-segmentation/swin/maskformer2_swin_base_IN21k_384_bs16_160k_res640.yaml", seed=20
    ),
    "ade20k_panoptic_r50": Case("ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k.yaml", seed=10),
    "ade20k_instance_swin_large": Case(
        "ade20k/instance-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_160k.yaml", seed=20
    ),
    "cityscapes_panoptic_r101": Case("cityscapes/panoptic-segmentation/maskformer2_R101_bs16_90k.yaml", seed=50),
    "cityscapes_instance_r50": Case("cityscapes/instance-segmentation/maskformer2_R50_bs16_90k.yaml", seed=10),
    "cityscapes_semantic_swin_tiny": Case("cityscapes/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_90k.yaml"),
    "mapillary_semantic_r50": Case("mapillary-vistas/semantic-segmentation/maskformer2_R50_bs16_300k.yaml", seed=20),
    "mapillary_panoptic_swin_large": Case(
        "mapillary-vistas/panoptic-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_300k.yaml", seed=20
    ),
    "maskformer_semantic_r50": Case(
        "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml", options=tuple(MASKFORMER), seed=10
    ),
    "maskformer_encoder_panoptic_r50": Case(
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        options=(
            *MASKFORMER,
            "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
            "TransformerEncoderPixelDecoder",
            "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE",
            "transformer_encoder",
        ),
    ),
}


def config(case: Case, configs: Path = ROOT / "configs", narrow: bool = True) -> CfgNode:
    """The config; where the images of a batch can be kept apart, they are padded to the largest, as published."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(configs / case.config))
    cfg.merge_from_list([*COMMON, *(NARROW if narrow else []), *case.options])
    if narrow and "R50" not in case.config and "R101" not in case.config:
        cfg.MODEL.SWIN.DEPTHS = [2, 1, 2, 1]
    if "PAD_TO_LARGEST" in cfg.MODEL.MASK_FORMER.TEST:
        cfg.MODEL.MASK_FORMER.TEST.PAD_TO_LARGEST = True
    return cfg


def built(cfg: CfgNode) -> nn.Module:
    """The model with the weights that belong to its names; thing classes are those in the first 60%."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fill.fill_(build_model(cfg))
    things = range(max(1, int(0.6 * cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)))
    model.metadata = SimpleNamespace(name="fidelity", thing_dataset_id_to_contiguous_id={i: i for i in things})
    return model


def samples(case: Case, num_classes: int) -> list[dict[str, Any]]:
    """Images with targets; results are wanted at another size than the image's."""
    batch = []
    for seed, ((height, width), count) in enumerate(zip(case.sizes, case.objects, strict=True), start=case.seed):
        rng = np.random.RandomState(seed + 1)
        yy, xx = np.mgrid[0:height, 0:width]
        masks = np.zeros((count, height, width), dtype=bool)
        for mask in masks:
            y, x, a, b = rng.rand(4) * (height, width, height / 3, width / 3) + (0, 0, 6, 6)
            mask |= ((yy - y) / a) ** 2 + ((xx - x) / b) ** 2 < 1
        instances = Instances((height, width))
        instances.gt_classes = torch.from_numpy(rng.randint(0, num_classes, count))
        instances.gt_masks = torch.from_numpy(masks)
        image = fill.image(height, width, seed)
        batch.append({"image": image, "height": height + 20, "width": 2 * width - 31, "instances": instances})
    return batch


@contextmanager
def shared_random_numbers() -> Iterator[None]:
    """`torch.rand` of (..., P, 2) reads on in the stream of its P."""
    streams: dict[int, np.random.RandomState] = {}
    original = torch.rand

    def rand(*size: int, **_: Any) -> Tensor:
        stream = streams.setdefault(size[-2], np.random.RandomState(size[-2]))
        return torch.from_numpy(stream.random_sample(size).astype(np.float32))

    torch.rand = rand
    try:
        yield
    finally:
        torch.rand = original


def layers_of(output: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """(class logits, mask logits) of every layer, the last one last."""
    return [(layer["pred_logits"], layer["pred_masks"]) for layer in [*output["aux_outputs"], output]]


@torch.no_grad()
def predicted(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Logits of every layer and the results of every image."""
    caught: list[dict[str, Any]] = []
    hook = model.sem_seg_head.register_forward_hook(lambda module, args, output: caught.append(output))
    results = model.eval()([{key: x[key] for key in ("image", "height", "width")} for x in batch])
    hook.remove()
    (output,) = caught
    arrays = {}
    for i, (classes, masks) in enumerate(layers_of(output)):
        arrays |= {f"class_logits/{i}": classes.numpy(), f"mask_logits/{i}": masks.numpy()}
    for i, result in enumerate(results):
        if "sem_seg" in result:
            arrays[f"semantic/{i}"] = result["sem_seg"].numpy()
        if "panoptic_seg" in result:
            ids, segments = result["panoptic_seg"]
            arrays[f"panoptic_ids/{i}"] = ids.numpy()
            known = [(s["id"], s["category_id"], s["isthing"]) for s in segments]
            arrays[f"panoptic_segments/{i}"] = np.array(known, dtype=np.int64).reshape(-1, 3)
        if "instances" in result:
            # Published without an order. Equal scores are those of masks without a pixel: 0.
            instances = result["instances"]
            order = np.lexsort((instances.pred_classes.numpy(), -instances.scores.numpy().round(6)))
            arrays[f"instance_scores/{i}"] = instances.scores.numpy()[order]
            scored = order[instances.scores.numpy()[order] > 1e-4]
            arrays[f"instance_classes/{i}"] = instances.pred_classes.numpy()[scored]
            arrays[f"instance_masks/{i}"] = instances.pred_masks.numpy()[scored].astype(bool)
    return arrays


def in_training(model: nn.Module) -> nn.Module:
    """Training mode, but for batch norms: the statistics of so few pixels magnify rounding a thousandfold."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def trained(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Losses and the gradients of their sum."""
    with shared_random_numbers():
        losses = in_training(model)([{key: x[key] for key in ("image", "instances")} for x in batch])
    model.zero_grad()
    sum(losses.values()).backward()
    arrays = {f"loss/{name}": loss.detach().numpy() for name, loss in losses.items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            arrays[f"gradient/{name}"] = parameter.grad.numpy()
    return arrays


@torch.no_grad()
def augmented(case: Case, cfg: CfgNode) -> dict[str, np.ndarray]:
    """Semantic scores averaged over three sizes and their mirror images, one version at a time."""
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (48, 64, 97), 200, True
    model = SemanticSegmentorWithTTA(cfg, built(cfg).eval(), batch_size=1)
    batch = [{key: x[key] for key in ("image", "height", "width")} for x in samples(case, 19)]
    return {f"semantic_augmented/{i}": result["sem_seg"].numpy() for i, result in enumerate(model(batch))}


def answers(case: Case, cfg: CfgNode) -> dict[str, np.ndarray]:
    """Everything a case is compared by."""
    model = built(cfg)
    batch = samples(case, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    return predicted(model, batch) | trained(model, batch)
