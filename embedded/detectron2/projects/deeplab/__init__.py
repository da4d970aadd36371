"""What Mask2Former takes from DeepLab: config keys, the polynomial schedule, the ResNet with a three-layer stem."""

from .build_solver import build_lr_scheduler
from .config import add_deeplab_config
from .lr_scheduler import WarmupPolyLR
from .resnet import DeepLabStem, build_resnet_deeplab_backbone

__all__ = [
    "DeepLabStem",
    "WarmupPolyLR",
    "add_deeplab_config",
    "build_lr_scheduler",
    "build_resnet_deeplab_backbone",
]
