"""Config files that other people wrote for the published code load unchanged; files that would run code do not.

`user_configs/` holds files in the published style: chains and lists of bases, tuples as strings, sizes as arithmetic,
keys of other models.
"""

import logging
import shutil
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.modeling import build_model

from mask2former import load_config
from mask2former.setup_config import report_settings_without_effect, settings_without_effect

ROOT = Path(__file__).parents[1]
THEIRS = Path(__file__).parent / "user_configs"
embedded_only = pytest.mark.skipif(
    not getattr(detectron2, "EMBEDDED", False), reason="upstream runs the code that YAML files ask for"
)


def load(path: Path, *options):
    return load_config(path, ["MODEL.DEVICE", "cpu", *options])


@pytest.mark.parametrize("path", sorted(THEIRS.rglob("[a-z]*.yaml")), ids=lambda path: path.stem)
def test_their_file_loads_and_describes_a_model(path):
    if path.stem == "short_schedule":  # only ever the base of another
        assert load(path).SOLVER.MAX_ITER == 9000
        return
    cfg = load(path, "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        model = build_model(cfg)
    assert model.sem_seg_head.predictor.class_embed.out_features == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES + 1


def test_a_chain_of_bases_arithmetic_and_tuples_in_quotes():
    cfg = load(THEIRS / "swin" / "maskformer2_swin_tiny.yaml")
    assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SWIN.WINDOW_SIZE) == ("D2SwinTransformer", 7)  # the file itself
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == ("MaskFormer", 23)  # its base
    assert cfg.DATASETS.TRAIN == ("kitchen_panoptic_train",)  # the base of that
    assert cfg.SOLVER.STEPS == (26000, 36000) and tuple(cfg.INPUT.CROP.SIZE) == (512, 512)
    # 0.1 * 512 = 51.2 times 5, 6, ... 20, cut to whole numbers
    sizes = [256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024]
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == sizes
    assert tuple(cfg.TEST.AUG.MIN_SIZES) == (256, 384, 512)


def test_a_list_of_bases_is_merged_in_its_order():
    cfg = load(THEIRS / "two_bases.yaml")
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (9000, (8900,), 23)


def test_a_base_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(THEIRS, tmp_path / "their configs")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.yaml").write_text("_BASE_: ~/their configs/maskformer2_R50.yaml\nSEED: 3\n")
    cfg = load(elsewhere / "mine.yaml")
    assert (cfg.SEED, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (3, 23)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*/*/Base-*.yaml")), ids=lambda path: path.stem)
def test_a_file_can_be_based_on_every_published_base(path, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {path}\nMODEL:\n  SEM_SEG_HEAD:\n    NUM_CLASSES: 4\n")
    cfg = load(tmp_path / "mine.yaml")
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 4 and cfg.DATASETS.TRAIN == load(path).DATASETS.TRAIN


def test_keys_of_other_models_are_reported_once_each_with_what_to_set_instead(caplog):
    cfg = load(THEIRS / "mask_rcnn_leftovers.yaml")
    caplog.clear()  # upstream warns of YAML files that hold code
    with caplog.at_level(logging.WARNING, logger="mask2former"):
        report_settings_without_effect(cfg)
    said = [record.message.split(" = ")[0] for record in caplog.records]
    assert sorted(said) == [
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "MODEL.MASK_ON",
        "MODEL.ROI_HEADS.NAME",
        "MODEL.ROI_HEADS.NUM_CLASSES",
        "MODEL.RPN.IN_FEATURES",
    ]
    assert all("MODEL.SEM_SEG_HEAD.NUM_CLASSES" in record.message for record in caplog.records)


def test_settings_at_their_defaults_are_not_reported():
    assert settings_without_effect(load(THEIRS / "maskformer2_R50.yaml")) == []


HOSTILE = {
    "calls a function": "!!python/object/apply:pathlib.Path.touch [{file}]",
    "runs a command": '!!python/object/apply:os.system ["touch {file}"]',
    "evaluates an import": "!!python/object/apply:eval [\"__import__('os').system('touch {file}')\"]",
    "evaluates attributes": '!!python/object/apply:eval ["[c for c in ().__class__.__base__.__subclasses__()]"]',
    "evaluates an open file": "!!python/object/apply:eval [\"open('{file}', 'w')\"]",
    "executes": "!!python/object/apply:exec [\"open('{file}', 'w')\"]",
    "makes an object": "!!python/object/new:subprocess.Popen [[touch, {file}]]",
    "names a function": "!!python/name:os.system",
    "imports a module": "!!python/module:antigravity",
    "computes for ever": '!!python/object/apply:eval ["9**9**9"]',
    "fills the memory": '!!python/object/apply:eval ["[[0 for i in range(9999)] for j in range(9999)]"]',
    "contains itself": "&loop [*loop]",
    "multiplies aliases": "[&a [x, x, x, x, x, x, x, x, x, x], &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a], "
    "&c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b], &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c], "
    "&e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]]",
}


@embedded_only
@pytest.mark.parametrize("where", ["in the file", "in its base"])
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_yaml_is_refused_with_its_place_and_does_nothing(what, where, tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "hostile.yaml").write_text("VERSION: 2\nDATASETS:\n  TRAIN: " + HOSTILE[what].format(file=trace))
    (tmp_path / "harmless.yaml").write_text("_BASE_: hostile.yaml\n")
    with pytest.raises(ValueError, match=r"hostile\.yaml, line 3: refused"):
        load(tmp_path / ("hostile.yaml" if where == "in the file" else "harmless.yaml"))
    assert not trace.exists()


@embedded_only
def test_aliases_as_people_use_them_are_read(tmp_path):
    text = "VERSION: 2\nINPUT:\n  MIN_SIZE_TRAIN: &sizes [480, 512]\nTEST:\n  AUG:\n    MIN_SIZES: *sizes\n"
    (tmp_path / "aliases.yaml").write_text(text)
    assert load(tmp_path / "aliases.yaml").TEST.AUG.MIN_SIZES == (480, 512)
