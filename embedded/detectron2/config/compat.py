"""Configs of version 1 are not converted, only recognised."""

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from detectron2.config.config import CfgNode

_RENAMED = (
    "MODEL.WEIGHT is now MODEL.WEIGHTS, TEST.AUG_ON is TEST.AUG.ENABLED, TEST.AUG_* are TEST.AUG.*, "
    "TEST.DETECTIONS_PER_IMG is TEST.DETECTIONS_PER_IMAGE"
)


def upgrade_config(cfg: "CfgNode", to_version: int | None = None) -> "CfgNode":
    """A copy of cfg, which must already be of version 2; ValueError otherwise."""
    if cfg.VERSION != 2 or to_version not in (None, 2):
        raise ValueError(f"Cannot upgrade a config of version {cfg.VERSION}: write it as VERSION 2 ({_RENAMED}).")
    return cfg.clone()


def downgrade_config(cfg: "CfgNode", to_version: int) -> "CfgNode":
    """A copy of cfg if `to_version` is its version; ValueError otherwise."""
    if to_version != cfg.VERSION:
        raise ValueError(
            f"Cannot downgrade a config of version {cfg.VERSION} to {to_version}: only version 2 is known."
        )
    return cfg.clone()


def refuse_old(where: str) -> NoReturn:
    """Raise the error for a file of version 1."""
    raise ValueError(f"{where} is a config of version 1: rename its keys ({_RENAMED}) and add `VERSION: 2`.")
