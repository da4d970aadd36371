"""Configuration: the tree of defaults, YAML files on top of it, classes built from it."""

from detectron2._unsupported import missing, stub
from detectron2.config.compat import downgrade_config, upgrade_config
from detectron2.config.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__all__ = [
    "CfgNode",
    "LazyCall",
    "LazyConfig",
    "configurable",
    "downgrade_config",
    "get_cfg",
    "global_cfg",
    "instantiate",
    "set_global_cfg",
    "upgrade_config",
]

# Configs as Python files are not supported.
LazyConfig = stub("config.LazyConfig", methods=("load", "load_rel", "save", "apply_overrides", "to_py"))
LazyCall = stub("config.LazyCall")
instantiate = stub("config.instantiate")

__getattr__ = missing(__name__)
