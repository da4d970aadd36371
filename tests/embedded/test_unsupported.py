"""Parts of detectron2 that are left out are named when asked for."""

import importlib

import detectron2
import pytest

pytestmark = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream has all its parts")


@pytest.mark.parametrize(
    ("statement", "part"),
    [
        ("import detectron2.model_zoo", "model_zoo"),
        ("from detectron2 import model_zoo", "model_zoo"),
        ("from detectron2.model_zoo import get_config_file", "model_zoo"),
        ("import detectron2.export.api", "export"),
        ("from detectron2.modeling import GeneralizedRCNN", "modeling.GeneralizedRCNN"),
        ("from detectron2.modeling.roi_heads import StandardROIHeads", "modeling.roi_heads"),
        ("from detectron2.config.lazy import LazyConfig", "config.lazy"),
        ("from detectron2.config import LazyConfig; LazyConfig.load('x.py')", "config.LazyConfig"),
        ("from detectron2.config import LazyCall; LazyCall(dict)", "config.LazyCall"),
        ("from detectron2.config import instantiate; instantiate({})", "config.instantiate"),
    ],
)
def test_a_left_out_part_is_named(statement: str, part: str):
    expected = f"detectron2's {part} is not part of the embedded detectron2.*install upstream: .*pip install"
    with pytest.raises(ImportError, match=expected):
        exec(statement, {})


def test_misspelt_names_stay_ordinary_errors():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'detectron2.nonsense'"):
        importlib.import_module("detectron2.nonsense")
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec("from detectron2.config import nonsense", {})
    assert not hasattr(detectron2, "nonsense")


def test_what_is_here_is_found():
    from detectron2.utils import comm

    assert importlib.import_module("detectron2.utils.comm") is comm
    assert detectron2.__version__ == "0.6" and detectron2.EMBEDDED
