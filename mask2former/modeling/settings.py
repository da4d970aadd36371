"""Checks of the settings that choose and size the parts of the model, before a part is built from them."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry


def registered(registry: Registry, key: str, name: str, is_meant: Callable[[Any], bool] = lambda part: True) -> Any:
    """What is registered under the name that the config key holds.

    Args:
        is_meant: which of the registered parts to name as a choice, where a registry holds several kinds.

    Raises:
        ValueError: nothing is; the message lists what is.
    """
    if name not in registry:
        choices = ", ".join(sorted(choice for choice, part in registry if is_meant(part)))
        raise ValueError(
            f"{key} is {name!r}, which is not registered. Registered are: {choices}. Take the name from "
            "a file in configs/, or import the module that registers it."
        )
    return registry.get(name)


def check_names(cfg: CfgNode) -> None:
    """Refuse a backbone or a head that nothing registers, and list those there are."""
    registered(BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME)
    registered(
        SEM_SEG_HEADS_REGISTRY,
        "MODEL.SEM_SEG_HEAD.NAME",
        cfg.MODEL.SEM_SEG_HEAD.NAME,
        lambda part: not is_pixel_decoder(part),
    )


def is_pixel_decoder(part: Any) -> bool:
    """Whether an entry of the registry of heads is a pixel decoder."""
    return callable(getattr(part, "forward_features", None))


def check_pixel_decoder_width(cfg: CfgNode) -> None:
    """Refuse a MODEL.SEM_SEG_HEAD.CONVS_DIM that norms, positions or heads cannot divide."""
    head = cfg.MODEL.SEM_SEG_HEAD
    divisors = {}
    if head.NORM == "GN":
        divisors["GroupNorm's 32 groups"] = 32
    if head.PIXEL_DECODER_NAME in ("MSDeformAttnPixelDecoder", "TransformerEncoderPixelDecoder"):
        divisors["the position encoding's 4 parts"] = 4
        divisors[f"the {cfg.MODEL.MASK_FORMER.NHEADS} heads of MODEL.MASK_FORMER.NHEADS"] = cfg.MODEL.MASK_FORMER.NHEADS
    if head.PIXEL_DECODER_NAME == "MSDeformAttnPixelDecoder":
        divisors["GroupNorm's 32 groups"] = 32
    _check("MODEL.SEM_SEG_HEAD.CONVS_DIM", head.CONVS_DIM, divisors)
    _check("MODEL.SEM_SEG_HEAD.MASK_DIM", head.MASK_DIM, {})


def check_query_width(cfg: CfgNode) -> None:
    """Refuse a MODEL.MASK_FORMER.HIDDEN_DIM that positions or heads cannot divide."""
    heads = cfg.MODEL.MASK_FORMER.NHEADS
    divisors = {"the position encoding's 4 parts": 4, f"the {heads} heads of MODEL.MASK_FORMER.NHEADS": heads}
    _check("MODEL.MASK_FORMER.HIDDEN_DIM", cfg.MODEL.MASK_FORMER.HIDDEN_DIM, divisors)
    _check("MODEL.SEM_SEG_HEAD.MASK_DIM", cfg.MODEL.SEM_SEG_HEAD.MASK_DIM, {})


def _check(key: str, width: int, divisors: dict[str, int]) -> None:
    if width < 1:
        raise ValueError(f"{key} is {width}: a number of channels is at least 1.")
    for reason, divisor in divisors.items():
        if divisor < 1:
            raise ValueError(f"MODEL.MASK_FORMER.NHEADS is {divisor}: there is at least one head.")
        if width % divisor:
            raise ValueError(f"{key} is {width}, which {reason} do not divide: choose a multiple of {divisor}.")
