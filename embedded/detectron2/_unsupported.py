"""Parts of detectron2 that the embedded one does not have: whoever asks for one is told so by name.

`missing(__name__)` makes a module-level `__getattr__`; a meta-path finder does the same for whole modules. Both know
the names that exist upstream, so that a misspelt name stays an ordinary AttributeError or ModuleNotFoundError. What
scripts import without using it is there as a `stub`.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

INSTALL_UPSTREAM = "python -m pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"

# Modules of upstream that are left out. A module below one of these is left out with it.
_MODULES = """
    export model_zoo tracking _C
    checkpoint.c2_model_loading checkpoint.catalog config.lazy config.instantiate
    data.benchmark data.datasets.lvis data.datasets.lvis_v0_5_categories data.datasets.lvis_v1_categories
    data.datasets.pascal_voc
    evaluation.pascal_voc_evaluation evaluation.rotated_coco_evaluation
    layers.aspp layers.losses layers.mask_ops layers.nms layers.roi_align layers.roi_align_rotated
    layers.rotated_boxes
    modeling.anchor_generator modeling.box_regression modeling.matcher modeling.mmdet_wrapper modeling.poolers
    modeling.proposal_generator modeling.roi_heads modeling.sampling
    modeling.backbone.fpn modeling.backbone.mvit modeling.backbone.regnet modeling.backbone.swin
    modeling.backbone.utils modeling.backbone.vit
    modeling.meta_arch.dense_detector modeling.meta_arch.fcos modeling.meta_arch.panoptic_fpn
    modeling.meta_arch.rcnn modeling.meta_arch.retinanet
    projects.panoptic_deeplab projects.densepose projects.tensormask projects.tridentnet
    structures.keypoints structures.rotated_boxes
    utils.develop utils.testing utils.tracing utils.torch_version_utils
"""
MODULES = frozenset(f"detectron2.{name}" for name in _MODULES.split())

# Public names of upstream that are left out, by the package they are imported from.
NAMES: dict[str, frozenset[str]] = {
    package: frozenset(names.split())
    for package, names in {
        "detectron2": "export model_zoo tracking",
        "detectron2.checkpoint": "ModelCatalog",
        "detectron2.data.datasets": """register_lvis_instances load_lvis_json get_lvis_instances_meta load_voc_instances
            register_pascal_voc""",
        "detectron2.evaluation": "PascalVOCDetectionEvaluator RotatedCOCOEvaluator",
        "detectron2.layers": """ASPP BatchedNMS ROIAlign ROIAlignRotated DepthwiseSeparableConv2d
            batched_nms batched_nms_rotated nms nms_rotated paste_masks_in_image roi_align
            roi_align_rotated pairwise_iou_rotated diou_loss ciou_loss CycleBatchNormList""",
        "detectron2.modeling": """ANCHOR_GENERATOR_REGISTRY FPN FCOS GeneralizedRCNN ProposalNetwork RetinaNet RPN
            PanopticFPN SemSegFPNHead GeneralizedRCNNWithTTA MViT ViT SimpleFeaturePyramid RegNet
            SwinTransformer MMDetBackbone MMDetDetector PROPOSAL_GENERATOR_REGISTRY ROI_HEADS_REGISTRY
            ROI_BOX_HEAD_REGISTRY ROI_MASK_HEAD_REGISTRY ROI_KEYPOINT_HEAD_REGISTRY RPN_HEAD_REGISTRY
            BaseMaskRCNNHead BaseKeypointRCNNHead FastRCNNOutputLayers ROIHeads StandardROIHeads Res5ROIHeads
            CascadeROIHeads build_anchor_generator build_box_head build_keypoint_head build_mask_head
            build_proposal_generator build_roi_heads get_vit_lr_decay_rate build_resnet_fpn_backbone
            build_retinanet_resnet_fpn_backbone""",
        "detectron2.modeling.backbone": """FPN MViT ViT SimpleFeaturePyramid RegNet SwinTransformer MMDetBackbone
            get_vit_lr_decay_rate build_resnet_fpn_backbone""",
        "detectron2.modeling.meta_arch": "GeneralizedRCNN ProposalNetwork RetinaNet PanopticFPN FCOS DenseDetector",
        "detectron2.structures": "heatmaps_to_keypoints pairwise_iou_rotated",
        "detectron2.utils": "develop testing tracing",
    }.items()
}


class NotEmbeddedError(ModuleNotFoundError):
    """A part of detectron2 was asked for that the embedded detectron2 does not have."""


def refuse(name: str) -> NoReturn:
    """Raise NotEmbeddedError for the upstream part `name`, for example "modeling.GeneralizedRCNN"."""
    name = name.removeprefix("detectron2.")
    raise NotEmbeddedError(
        f"detectron2's {name} is not part of the embedded detectron2, which holds what Mask2Former needs; "
        f"install upstream: {INSTALL_UPSTREAM} (it replaces this one; it needs a C++ compiler and torchvision)",
        name=f"detectron2.{name}",
    )


def stub(name: str, base: type = object, methods: Sequence[str] = ()) -> type:
    """A class in the place of upstream's `name`: it can be imported, and refuses to be made.

    Args:
        name: as for `refuse`.
        base: what `isinstance` and `issubclass` of other scripts expect of it.
        methods: static methods, which refuse as well.
    """

    def refusing(*args: Any, **kwargs: Any) -> NoReturn:
        refuse(name)

    members = {method: staticmethod(refusing) for method in methods}
    document = f"Stands in for upstream's {name}; every use raises NotEmbeddedError."
    return type(name.rpartition(".")[2], (base,), {"__init__": refusing, "__doc__": document, **members})


def missing(module_name: str) -> Callable[[str], Any]:
    """The `__getattr__` of the module `module_name`: write `__getattr__ = missing(__name__)` at its end.

    Python calls it only for names the module lacks. It raises an ImportError, because `from module import name` would
    replace an AttributeError and its message.
    """

    def __getattr__(name: str) -> Any:
        if name in NAMES.get(module_name, ()):
            refuse(f"{module_name}.{name}")
        raise AttributeError(f"module {module_name!r} has no attribute {name!r}")

    return __getattr__


class _Finder(importlib.abc.MetaPathFinder):
    """The last finder of all: it is asked only for modules that nobody has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in MODULES:
            refuse(fullname)
        return None


def install_finder() -> None:
    """Put the finder at the end of `sys.meta_path`, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
