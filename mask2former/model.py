"""Mask2Former: images in; losses (training) or results (inference) out.

B images, Q queries, K classes, G segments of an image, H W size of an image.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks, polygons_to_bitmask
from torch import Tensor, nn

from .inference import Frame, instance_inference, panoptic_inference, semantic_inference
from .modeling.activation_checkpointing import checkpoint_activations
from .modeling.criterion import SetCriterion
from .modeling.folding import fold_norms
from .modeling.matcher import HungarianMatcher
from .modeling.settings import check_names

logger = logging.getLogger(__name__)

# Images smaller than this have their channels first on the CPU: turning the weights takes longer than is gained.
CHANNELS_LAST_PIXELS = 1 << 16

PRECISIONS = ("float32", "bfloat16", "float16")


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """A set of (class, mask) pairs for an image, and the semantic, instance and panoptic results read off it."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        num_queries: int,
        object_mask_threshold: float,
        overlap_threshold: float,
        metadata: Any,
        size_divisibility: int,
        sem_seg_postprocess_before_inference: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        semantic_on: bool,
        panoptic_on: bool,
        instance_on: bool,
        test_topk_per_image: int,
        pad_to_largest: bool = False,
        semantic_label_map: bool = False,
        precision: str = "float32",
    ) -> None:
        """
        Args:
            sem_seg_head: predicts "pred_logits", "pred_masks" and "aux_outputs" from the backbone's features.
            criterion: losses from these and targets; only losses named in its `weight_dict` are returned.
            num_queries: Q.
            object_mask_threshold, overlap_threshold: of panoptic results, see `panoptic_inference`.
            metadata: of the dataset; which classes are things is read from it when a panoptic result is made.
            size_divisibility: images are padded to a multiple of it; below 0: of what the backbone asks for.
            sem_seg_postprocess_before_inference: resize masks, not scores, to the output size (semantic results).
            pixel_mean, pixel_std: per channel.
            semantic_on, panoptic_on, instance_on: which results to return.
            test_topk_per_image: instances per image.
            pad_to_largest, semantic_label_map, precision: see MODEL.MASK_FORMER.TEST in the config.
        """
        super().__init__()
        self.backbone = backbone
        fold_norms(backbone)
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_queries = num_queries
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.metadata = metadata
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.sem_seg_postprocess_before_inference = sem_seg_postprocess_before_inference
        self.semantic_on = semantic_on
        self.panoptic_on = panoptic_on
        self.instance_on = instance_on
        self.test_topk_per_image = test_topk_per_image
        self.pad_to_largest = pad_to_largest
        self.semantic_label_map = semantic_label_map
        if precision not in PRECISIONS:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.PRECISION is {precision!r}; choose one of {', '.join(PRECISIONS)}"
            )
        self.precision = precision
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        mask_former, test = cfg.MODEL.MASK_FORMER, cfg.MODEL.MASK_FORMER.TEST
        check_names(cfg)
        backbone = build_backbone(cfg)
        sem_seg_head = build_sem_seg_head(cfg, backbone.output_shape())
        if mask_former.ACTIVATION_CHECKPOINTING:
            checkpoint_activations(backbone, sem_seg_head)
        return {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "criterion": build_criterion(cfg),
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": test.OVERLAP_THRESHOLD,
            "metadata": dataset_metadata(cfg),
            "size_divisibility": mask_former.SIZE_DIVISIBILITY,
            "sem_seg_postprocess_before_inference": (
                test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or test.PANOPTIC_ON or test.INSTANCE_ON
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "semantic_on": test.SEMANTIC_ON,
            "panoptic_on": test.PANOPTIC_ON,
            "instance_on": test.INSTANCE_ON,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pad_to_largest": test.PAD_TO_LARGEST,
            "semantic_label_map": test.SEMANTIC_LABEL_MAP,
            "precision": test.PRECISION,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def num_classes(self) -> int:
        """K, as the head has it."""
        return cast(int, self.sem_seg_head.num_classes)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training mode, results otherwise.

        Args:
            batched_inputs: one dict per image: "image" (3, H, W), uint8 or float, channels in INPUT.FORMAT's order;
                for training "instances" with gt_classes and gt_masks (a (G, H, W) tensor, BitMasks or PolygonMasks);
                for inference optionally "height" and "width" of the results, by default the image's.

        Returns:
            Training: the weighted losses by name. Inference: one dict per image, with
            "sem_seg": (K, H, W) float32 scores, or (H, W) int64 classes with `semantic_label_map`;
            "panoptic_seg": (H, W) int32 ids and a list of segments, see `panoptic_inference`;
            "instances": Instances with pred_masks (bool), pred_boxes (around the masks), scores, pred_classes.
        """
        images = [self.normalized(sample) for sample in batched_inputs]
        if self.training:
            return self.losses(images, batched_inputs)
        results: list[dict[str, Any]] = [{} for _ in images]
        for group in self.groups(images):
            batch = ImageList.from_tensors([images[i] for i in group], self.size_divisibility)
            outputs = self.predictions(batch.tensor)
            for row, i in enumerate(group):
                height, width = images[i].shape[-2:]
                sample = batched_inputs[i]
                frame = Frame(
                    padded=(batch.tensor.shape[-2], batch.tensor.shape[-1]),
                    image=(height, width),
                    output=(int(sample.get("height", height)), int(sample.get("width", width))),
                )
                results[i] = self.results(outputs["pred_logits"][row], outputs["pred_masks"][row], frame)
        return results

    def predictions(self, images: Tensor) -> dict[str, Any]:
        """What the queries predict for normalised images (B, 3, H, W); see the head."""
        if images.device.type != "cpu" or self._channels_last_pays(images):
            images = images.contiguous(memory_format=torch.channels_last)
        if self.training or self.precision == "float32":
            return self.sem_seg_head(self.backbone(images))
        with torch.autocast(images.device.type, getattr(torch, self.precision)):
            return self.sem_seg_head(self.backbone(images))

    def _channels_last_pays(self, images: Tensor) -> bool:
        """Whether (B, 3, H, W) images on the CPU are large enough, and no batch norm is trained: its statistics would
        lose a digit and a half, as torch sums them naively.
        """
        norms = (module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        return images[:, 0].numel() >= CHANNELS_LAST_PIXELS and not any(norm.training for norm in norms)

    def normalized(self, sample: dict[str, Any]) -> Tensor:
        """The image on the model's device, with zero mean and unit deviation; (3, H, W) float32."""
        image = sample["image"]
        if image.dim() != 3 or len(image) != len(self.pixel_mean):
            raise ValueError(
                f"image of {sample.get('file_name', 'a sample')} has shape {tuple(image.shape)}; expected "
                f"({len(self.pixel_mean)}, height, width)"
            )
        return (image.to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std

    def groups(self, images: list[Tensor]) -> list[list[int]]:
        """Which images run together: those of one padded size, so that padding depends on the image alone."""
        if self.pad_to_largest:
            return [list(range(len(images)))] if images else []
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        step = max(self.size_divisibility, 1)
        for i, image in enumerate(images):
            by_size[tuple(-(-side // step) for side in image.shape[-2:])].append(i)
        return list(by_size.values())

    def losses(self, images: list[Tensor], batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Weighted losses of a batch; see `forward`."""
        batch = ImageList.from_tensors(images, self.size_divisibility)
        num_classes = self.num_classes
        size = (batch.tensor.shape[-2], batch.tensor.shape[-1])
        targets = [training_target(sample, num_classes, size, self.device) for sample in batched_inputs]
        outputs = self.predictions(batch.tensor)
        weights = self.criterion.weight_dict
        losses = self.criterion(outputs, targets)
        return {name: loss * weights[name] for name, loss in losses.items() if name in weights}

    def results(self, class_logits: Tensor, mask_logits: Tensor, frame: Frame) -> dict[str, Any]:
        """Results of one image from its (Q, K+1) class logits and (Q, h, w) mask logits."""
        result: dict[str, Any] = {}
        if self.semantic_on:
            result["sem_seg"] = semantic_inference(
                class_logits,
                mask_logits,
                frame,
                resize_masks=self.sem_seg_postprocess_before_inference,
                label_map=self.semantic_label_map,
            )
        if self.panoptic_on:
            result["panoptic_seg"] = panoptic_inference(
                class_logits,
                mask_logits,
                frame,
                things=self.thing_classes(),
                object_mask_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        if self.instance_on:
            classes = sorted(self.thing_classes()) if self.panoptic_on else None
            masks, boxes, scores, labels = instance_inference(
                class_logits, mask_logits, frame, topk=self.test_topk_per_image, classes=classes
            )
            result["instances"] = Instances(
                frame.output, pred_masks=masks, pred_boxes=Boxes(boxes), scores=scores, pred_classes=labels
            )
        return result

    def thing_classes(self) -> set[int]:
        """Contiguous ids of the classes whose segments are told apart.

        Read when needed: loading a dataset may be what fills its metadata.

        Raises:
            ValueError: the dataset's metadata does not say.
        """
        if self.metadata is None:
            return set(range(self.num_classes))
        ids = getattr(self.metadata, "thing_dataset_id_to_contiguous_id", None)
        if ids is None:
            raise ValueError(
                f"Panoptic results need to know which classes are things, but the metadata of dataset "
                f"{self.metadata.name!r} has no thing_dataset_id_to_contiguous_id. Set it, for example "
                f"MetadataCatalog.get({self.metadata.name!r}).thing_dataset_id_to_contiguous_id = {{1: 0, 2: 1}} "
                f"(id in the annotations to class index), or switch MODEL.MASK_FORMER.TEST.PANOPTIC_ON off."
            )
        return set(ids.values())


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """Matcher and losses with the weights and points of MODEL.MASK_FORMER."""
    mask_former = cfg.MODEL.MASK_FORMER
    weights = {
        "loss_ce": mask_former.CLASS_WEIGHT,
        "loss_mask": mask_former.MASK_WEIGHT,
        "loss_dice": mask_former.DICE_WEIGHT,
    }
    matcher = HungarianMatcher(
        cost_class=mask_former.CLASS_WEIGHT,
        cost_mask=mask_former.MASK_WEIGHT,
        cost_dice=mask_former.DICE_WEIGHT,
        num_points=mask_former.TRAIN_NUM_POINTS,
    )
    earlier_layers = range(mask_former.DEC_LAYERS - 1) if mask_former.DEEP_SUPERVISION else ()
    return SetCriterion(
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        matcher=matcher,
        weight_dict=weights | {f"{name}_{i}": w for i in earlier_layers for name, w in weights.items()},
        eos_coef=mask_former.NO_OBJECT_WEIGHT,
        losses=["labels", "masks"],
        num_points=mask_former.TRAIN_NUM_POINTS,
        oversample_ratio=mask_former.OVERSAMPLE_RATIO,
        importance_sample_ratio=mask_former.IMPORTANCE_SAMPLE_RATIO,
    )


def dataset_metadata(cfg: CfgNode) -> Any:
    """Metadata of the first training dataset, else of the first test dataset, else None (all classes are things)."""
    names = [*cfg.DATASETS.TRAIN[:1], *cfg.DATASETS.TEST[:1]]
    if not cfg.DATASETS.TRAIN:
        source = f"the metadata of {names[0]} is used" if names else "every class counts as a thing"
        logger.warning("DATASETS.TRAIN is empty: %s.", source)
    return MetadataCatalog.get(names[0]) if names else None


def training_target(
    sample: dict[str, Any], num_classes: int, size: tuple[int, int], device: torch.device
) -> dict[str, Tensor]:
    """Labels and masks of one image, padded like the batch.

    Args:
        sample: with "instances", see `MaskFormer.forward`.
        size: (H, W) of the padded batch.

    Returns:
        "labels" (G) int64, "masks" (G, H, W) bool.

    Raises:
        ValueError: there are no instances, or a label is not in 0 ... K-1.
    """
    name = sample.get("file_name", "a sample without file_name")
    if "instances" not in sample:
        raise ValueError(f"{name} has no 'instances': training needs a mapper that makes gt_classes and gt_masks.")
    instances = sample["instances"]
    labels = instances.gt_classes
    # Checked where labels still are in host memory: on a GPU the same mistake is an unexplained assertion.
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        wrong = sorted({label for label in labels.tolist() if not 0 <= label < num_classes})
        raise ValueError(
            f"{name}: class labels {wrong} are out of range; with MODEL.SEM_SEG_HEAD.NUM_CLASSES = {num_classes} they "
            f"must be 0 ... {num_classes - 1}. Correct the number, or the dataset's ids (metadata, ignore label)."
        )
    masks = mask_tensor(instances).to(device, non_blocking=True)
    padded = torch.zeros(len(labels), *size, dtype=torch.bool, device=device)
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    return {"labels": labels.to(device, non_blocking=True), "masks": padded}


def mask_tensor(instances: Instances) -> Tensor:
    """gt_masks of any of detectron2's kinds as a (G, H, W) tensor, True (or not 0) inside."""
    height, width = instances.image_size
    if not len(instances) or not instances.has("gt_masks"):
        if len(instances):
            raise ValueError("instances have classes but no gt_masks: a mask is needed for each of them.")
        return torch.zeros(0, height, width, dtype=torch.bool)
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        bitmaps = [polygons_to_bitmask(polygons, height, width) for polygons in masks.polygons]
        return torch.stack([torch.from_numpy(bitmap) for bitmap in bitmaps])
    return masks.tensor if isinstance(masks, BitMasks) else masks
