"""add_maskformer2_config: the published keys and defaults, before or after deeplab's."""

import gzip
import json
import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

import mask2former.config
from mask2former import add_maskformer2_config

OFFICIAL = Path(__file__).parent / "golden" / "official_configs.json.gz"


def _flat(node, prefix=""):
    flat = {}
    for key, value in node.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _added(*functions):
    before, cfg = _flat(get_cfg()), get_cfg()
    for function in functions:
        function(cfg)
    return {key: value for key, value in _flat(cfg).items() if key not in before or before[key] != value}


def test_every_published_key_has_its_published_default():
    with gzip.open(OFFICIAL, "rt") as file:
        defaults = json.load(file)["defaults"]
    ours = _added(add_deeplab_config, add_maskformer2_config)
    own = {key for key, _ in mask2former.config._OWN}
    published = {key: value for key, value in ours.items() if key not in own}
    assert {key: defaults.get(key, "absent") for key in published} == json.loads(json.dumps(published))
    # and none is left out: whatever is not detectron2's must have been added
    detectron2_keys = set(_flat(get_cfg()))
    assert set(defaults) - detectron2_keys - set(ours) == set()


def test_the_order_of_the_two_functions_does_not_matter():
    assert _added(add_maskformer2_config, add_deeplab_config) == _added(add_deeplab_config, add_maskformer2_config)


def test_configs_do_not_share_lists():
    first, second = get_cfg(), get_cfg()
    add_maskformer2_config(first)
    add_maskformer2_config(second)
    first.MODEL.SWIN.DEPTHS.append(9)
    assert second.MODEL.SWIN.DEPTHS == [2, 2, 6, 2]


def test_a_misspelt_key_is_refused():
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    with pytest.raises((KeyError, AssertionError), match="NUM_OBJECT_QUERYS"):
        cfg.merge_from_list(["MODEL.MASK_FORMER.NUM_OBJECT_QUERYS", 10])


def test_every_key_has_a_line_on_it():
    source = Path(mask2former.config.__file__).read_text()
    # A comment stands above each group of at most three keys.
    assert not re.search(r"(?:\n    \(\"[^\n]+){4}", source)
