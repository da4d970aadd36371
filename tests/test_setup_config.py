"""Configs load in one call, and settings that do nothing are named."""

from pathlib import Path

import pytest

from mask2former import load_config
from mask2former.setup_config import settings_without_effect

CONFIGS = Path(__file__).parent.parent / "configs"
R50 = CONFIGS / "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"


def test_a_config_file_and_options_load_in_one_call():
    cfg = load_config(R50, ["SOLVER.BASE_LR", 0.5, "MODEL.DEVICE", "cpu"])
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.SOLVER.BASE_LR, cfg.MODEL.DEVICE) == (80, 0.5, "cpu")


def test_a_missing_config_file_is_named():
    with pytest.raises(ValueError, match=r"no config file nowhere\.yaml"):
        load_config("nowhere.yaml")


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
    ],
)
def test_a_setting_without_effect_is_named_with_what_to_do(setting, said):
    lines = settings_without_effect(load_config(R50, [*setting, "MODEL.DEVICE", "cpu"]))
    assert len(lines) == 1 and lines[0].startswith(f"{setting[0]} = ") and said in lines[0]


def test_what_acts_is_not_named():
    options = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.5, "INPUT.IMAGE_SIZE", 512, "MODEL.DEVICE", "cpu"]
    assert settings_without_effect(load_config(R50, options)) == []


COMPLETE = [  # what stands for a run, not what others are based on
    path for path in sorted(CONFIGS.glob("*/**/*.yaml")) if path.parent.name != "backbones" and "Base-" not in path.name
]


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_no_config_of_ours_sets_what_does_nothing(path):
    assert settings_without_effect(load_config(path, ["MODEL.DEVICE", "cpu"])) == []
