"""The registry of whole models and the builder that reads it."""

import logging
from typing import Any

import torch
from fvcore.common.registry import Registry
from torch import nn

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """
Whole models by the name in MODEL.META_ARCHITECTURE: a class or function `(cfg) -> nn.Module`.
"""


def build_model(cfg: Any) -> nn.Module:
    """Build MODEL.META_ARCHITECTURE on MODEL.DEVICE, with no weights loaded.

    Where the device is "cuda" (the default) and the machine has none, the model goes on the CPU and the log says so.
    """
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and not torch.cuda.is_available():
        logging.getLogger(__name__).info("MODEL.DEVICE is %s but there is no CUDA device: using the CPU.", device)
        device = torch.device("cpu")
    return model.to(device)
