"""Configs load in one call, and settings that do nothing are named."""

import ast
from pathlib import Path

import detectron2
import pytest
from detectron2.config import CfgNode

from mask2former import load_config
from mask2former.setup_config import _IDLE, changed, default_config, read_config, settings_without_effect

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
R50 = CONFIGS / "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"


def test_a_config_file_and_options_load_in_one_call():
    cfg = load_config(R50, ["SOLVER.BASE_LR", 0.5, "MODEL.DEVICE", "cpu"])
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.SOLVER.BASE_LR, cfg.MODEL.DEVICE) == (80, 0.5, "cpu")


def test_a_missing_config_file_is_named():
    with pytest.raises(ValueError, match=r"no config file nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_a_config_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"\x80\x02\xff")
    with pytest.raises(ValueError, match=r"model\.pth is not a text file: name one that ends in \.yaml"):
        load_config(tmp_path / "model.pth")


def test_a_config_is_read_as_written_where_the_device_does_not_matter():
    assert read_config(R50, ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cuda"


@pytest.mark.parametrize("frozen", [True, False])
def test_a_changed_config_is_a_copy_and_frozen_as_before(frozen):
    cfg = default_config()
    if frozen:
        cfg.freeze()
    other = changed(cfg, {"MODEL.DEVICE": "meta", "SOLVER.BASE_LR": 0.25})
    assert (other.MODEL.DEVICE, other.SOLVER.BASE_LR) == ("meta", 0.25)
    assert cfg.MODEL.DEVICE == "cuda" and other.is_frozen() == cfg.is_frozen() == frozen


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", 5], "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
        (["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", 8], "4 points"),
        (["MODEL.MASK_FORMER.ENC_LAYERS", 3], "StandardTransformerDecoder"),
        (["INPUT.CROP.ENABLED", True], "INPUT.IMAGE_SIZE"),
        (["INPUT.MIN_SIZE_TRAIN", (640,)], "INPUT.IMAGE_SIZE"),
        (["MODEL.SWIN.EMBED_DIM", 128], "no Swin"),
        (["SOLVER.MOMENTUM", 0.5], "SGD"),
        (["SOLVER.BIAS_LR_FACTOR", 2.0], "biases like weights"),
        (["MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 2.0], "MODEL.MASK_FORMER"),
        (["MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 128], "DeepLab"),
        (["VIS_PERIOD", 100], "proposals"),
        (["INPUT.MASK_FORMAT", "bitmask"], "run lengths"),
    ],
)
def test_a_setting_without_effect_is_named_with_what_to_do(setting, said):
    lines = settings_without_effect(load_config(R50, [*setting, "MODEL.DEVICE", "cpu"]))
    assert len(lines) == 1 and lines[0].startswith(f"{setting[0]} = ") and said in lines[0]


@pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream reads its keys in other models too")
def test_a_key_that_no_code_reads_is_named_when_it_is_set():
    read = set()
    for folder in (ROOT / "mask2former", Path(detectron2.__file__).parent, ROOT / "tools", ROOT / "demo"):
        for path in folder.rglob("*.py"):
            if (path.parent.name, path.name) not in {("config", "defaults.py"), ("mask2former", "setup_config.py")}:
                nodes = list(ast.walk(ast.parse(path.read_text())))
                read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
                read |= {node.value for node in nodes if isinstance(node, ast.Constant)}
    unread = [key for key in leaves(default_config()) if key.rsplit(".", 1)[-1] not in read]
    named = [prefix for prefix, _, _ in _IDLE] + ["MODEL.RESNETS"]  # DEFORM_*: refused with DEFORM_ON_PER_STAGE
    assert "VIS_PERIOD" in unread
    assert [key for key in unread if not any(key == name or key.startswith(name + ".") for name in named)] == []


def leaves(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items():
        keys += leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


def test_what_acts_is_not_named():
    options = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.5, "INPUT.IMAGE_SIZE", 512, "MODEL.DEVICE", "cpu"]
    assert settings_without_effect(load_config(R50, options)) == []


COMPLETE = [  # what stands for a run, not what others are based on
    path for path in sorted(CONFIGS.glob("*/**/*.yaml")) if path.parent.name != "backbones" and "Base-" not in path.name
]


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_no_config_of_ours_sets_what_does_nothing(path):
    assert settings_without_effect(load_config(path, ["MODEL.DEVICE", "cpu"])) == []
