"""Every published config: same merged values, same parameter names and shapes."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"


def recorded(name: str) -> dict:
    with gzip.open(GOLDEN / name, "rt") as file:
        return json.load(file)


CONFIGS = recorded("official_configs.json.gz")
MODELS = recorded("official_models.json.gz")


def load(path: Path):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def flatten(node: dict, prefix: str = "") -> dict:
    """Nested config to {"A.B": value}, tuples as lists, as JSON has them."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def test_there_are_47_published_configs():
    assert len(CONFIGS["configs"]) == len(MODELS) == 47


@pytest.mark.parametrize("name", CONFIGS["configs"])
def test_merged_values_are_the_published_ones(name):
    values = flatten(load(ROOT / "configs" / name))
    expected = {**CONFIGS["defaults"], **CONFIGS["configs"][name]}
    assert {key: values.get(key, "missing") for key in expected} == expected


@pytest.mark.parametrize("name", MODELS)
def test_the_built_model_has_the_published_parameters(name):
    cfg = load(ROOT / "configs" / name)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == MODELS[name]["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == MODELS[name]["params"]
