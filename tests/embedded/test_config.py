"""Configs: defaults, type rules, files on files, and what is refused."""

import gzip
import json
from pathlib import Path

import detectron2
import pytest
from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

EMBEDDED = getattr(detectron2, "EMBEDDED", False)
only_embedded = pytest.mark.skipif(not EMBEDDED, reason="upstream's messages are shorter and its YAML runs code")
GOLDEN = Path(__file__).parents[1] / "golden" / "official_configs.json.gz"


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def merged(folder: Path, text: str) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(write(folder, "config.yaml", "VERSION: 2\n" + text))
    return cfg


def leaves(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.loads(json.dumps(value))


def test_defaults_of_the_documented_keys():
    cfg = get_cfg()
    assert cfg.VERSION == 2 and cfg.OUTPUT_DIR == "./output" and cfg.SEED == -1
    assert cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675]
    assert cfg.TEST.AUG.MIN_SIZES == (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    assert cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS[2] == (30.0, 30.0, 15.0, 15.0)
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS is None


@pytest.mark.skipif(not GOLDEN.exists(), reason="the recorded configs are not here")
def test_every_default_equals_the_recorded_one():
    # The record was taken after the extensions had added their keys: ours must be the part they did not add.
    with gzip.open(GOLDEN) as file:
        recorded = dict(leaves(json.load(file)["defaults"]))
    own = dict(leaves(get_cfg()))
    assert {key: recorded.get(key, "absent") for key in own} == own


def test_get_cfg_gives_independent_copies():
    first = get_cfg()
    first.MODEL.RESNETS.OUT_FEATURES.append("res5")
    assert get_cfg().MODEL.RESNETS.OUT_FEATURES == ["res4"]


def test_global_cfg_is_refilled_in_place():
    cfg = get_cfg()
    cfg.OUTPUT_DIR = "here"
    set_global_cfg(cfg)
    assert global_cfg.OUTPUT_DIR == "here"
    from detectron2.config import global_cfg as again

    assert again is global_cfg


def test_a_frozen_config_refuses_attributes():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.SEED = 3


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.STEPS", "[1, 2]", (1, 2)),
        ("DATASETS.TRAIN", "('a', 'b')", ("a", "b")),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.5", 0.5),
        ("MODEL.WEIGHTS", "some/path.pkl", "some/path.pkl"),
    ],
)
def test_values_of_the_command_line_are_decoded(key: str, value: str, expected: object):
    cfg = get_cfg()
    cfg.merge_from_list([key, value])
    for part in key.split("."):
        cfg = cfg[part]
    assert cfg == expected and type(cfg) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "1"),
        ("SOLVER.MAX_ITER", "1.0"),
        ("SOLVER.AMP.ENABLED", "1"),
        ("SOLVER.AMP.ENABLED", "true"),
        ("SOLVER.STEPS", "5"),
        ("DATASETS.TRAIN", "('a')"),
        ("SOLVER.AMP", "{}"),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, value: str):
    with pytest.raises(ValueError, match=r"Type mismatch .* for config key: " + key):
        get_cfg().merge_from_list([key, value])


def test_unknown_keys_are_refused(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"Non-existent key: SOLVER.BASE_RATE"):
        get_cfg().merge_from_list(["SOLVER.BASE_RATE", "1.0"])
    with pytest.raises(KeyError, match=r"Non-existent config key: SOLVER.BASE_RATE"):
        merged(tmp_path, "SOLVER: {BASE_RATE: 1.0}")
    with pytest.raises(AssertionError, match="Override list has odd length"):
        get_cfg().merge_from_list(["SEED"])


@only_embedded
def test_errors_say_what_to_write(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config.yaml\): write 1.0 instead of 1$"):
        merged(tmp_path, "SOLVER: {BASE_LR: 1}")
    with pytest.raises(ValueError, match=r"write \(5,\) instead of 5$"):
        get_cfg().merge_from_list(["SOLVER.STEPS", "5"])
    with pytest.raises(ValueError, match=r"MODEL \(in .*config.yaml\): this is a section"):
        merged(tmp_path, "MODEL:")
    with pytest.raises(KeyError, match=r"BASELR \(in .*config.yaml\). Did you mean SOLVER.BASE_LR or"):
        merged(tmp_path, "SOLVER: {BASELR: 1.0}")
    with pytest.raises(AssertionError, match=r"There is no section MODEL.MASK_FORMER: was the project's add_"):
        get_cfg().merge_from_list(["MODEL.MASK_FORMER.DICE_WEIGHT", "1.0"])


def test_files_inherit_from_their_bases(tmp_path: Path):
    (tmp_path / "bases").mkdir()
    write(tmp_path, "bases/a.yaml", "VERSION: 2\nSEED: 1\nSOLVER: {MAX_ITER: 10, GAMMA: 0.5}\nOUTPUT_DIR: a")
    write(tmp_path, "bases/b.yaml", "_BASE_: a.yaml\nSEED: 2\nSOLVER: {MAX_ITER: 20}")
    write(tmp_path, "c.yaml", "OUTPUT_DIR: c")
    cfg = merged(tmp_path, "_BASE_: [bases/b.yaml, c.yaml]\nSOLVER: {GAMMA: 0.25}")
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA, cfg.OUTPUT_DIR) == (2, 20, 0.25, "c")


def test_a_section_cannot_replace_a_value_of_the_base(tmp_path: Path):
    write(tmp_path, "base.yaml", "VERSION: 2\nSEED: 1")
    with pytest.raises(AssertionError, match="Cannot inherit key 'SEED'"):
        merged(tmp_path, "_BASE_: base.yaml\nSEED: {X: 1}")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"Config file '.*none.yaml' does not exist!"):
        get_cfg().merge_from_file(str(tmp_path / "none.yaml"))


@only_embedded
def test_a_file_that_is_its_own_base_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="its own _BASE_"):
        merged(tmp_path, "_BASE_: config.yaml")


def test_versions(tmp_path: Path):
    path = write(tmp_path, "new.yaml", "VERSION: 3")
    with pytest.raises(AssertionError, match="Cannot merge a v3 config into a v2 config"):
        get_cfg().merge_from_file(path)
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path, "none.yaml", "SEED: 7"))  # guessed to be version 2
    assert cfg.SEED == 7


@only_embedded
def test_version_1_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="version 1: rename its keys"):
        get_cfg().merge_from_file(write(tmp_path, "old.yaml", "MODEL: {WEIGHT: x}"))


def test_the_published_list_of_sizes_is_read(tmp_path: Path):
    cfg = merged(
        tmp_path,
        'INPUT: {MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]}',
    )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    assert sizes[:3] == (256, 307, 358) and sizes[-1] == 1024 and len(sizes) == 16


@only_embedded
@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:eval [\"__import__('os').getcwd()\"]",
        '!!python/object/apply:eval ["().__class__"]',
        '!!python/object/apply:eval ["open"]',
        "!!python/object/apply:eval [\"'a' * 3\"]",
        '!!python/object/apply:eval ["10**10**10"]',
        '!!python/object/apply:eval ["list(range(10**12))"]',
        '!!python/object/apply:eval ["[[[1 for z in range(9999)] for y in range(9999)] for x in range(9999)]"]',
        '!!python/object/apply:eval ["range(10**40)"]',
        '!!python/object/apply:eval ["1 / 0"]',
        '!!python/object/apply:eval ["[1"]',
        "!!python/object/apply:os.getcwd []",
        "!!python/object/new:dict []",
        "!!python/name:os.getcwd",
        "!!python/module:os",
    ],
)
def test_code_in_yaml_is_refused_with_its_place(tmp_path: Path, value: str):
    with pytest.raises(ValueError, match=r"config.yaml, line 3: refused !!python/"):
        merged(tmp_path, f"# a comment\nSEED: {value}")


@only_embedded
def test_arithmetic_in_yaml(tmp_path: Path):
    cfg = merged(
        tmp_path, 'SOLVER: {STEPS: !!python/object/apply:eval ["(2**3, round(7.6), max(3, 9 // 2), -1 + 2 % 2)"]}'
    )
    assert cfg.SOLVER.STEPS == (8, 8, 4, -1)
    assert merged(tmp_path, "DATASETS: {TRAIN: !!python/tuple [a, b]}").DATASETS.TRAIN == ("a", "b")


def test_dump_and_read_again(tmp_path: Path):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.25
    again = get_cfg()
    again.merge_from_file(write(tmp_path, "dump.yaml", cfg.dump()))
    assert dict(leaves(again)) == dict(leaves(cfg))  # nested tuples come back as lists


class Base:
    @configurable
    def __init__(self, size: int, *, rate: float = 0.5, name: str = "none"):
        self.values = (size, rate, name)

    @classmethod
    def from_config(cls, cfg: CfgNode, size: int):
        return {"size": size, "rate": cfg.RATE}


class Derived(Base):
    @classmethod
    def from_config(cls, cfg: CfgNode, extra: int = 0):
        return {"size": 100 + extra}


def test_configurable_classes():
    cfg = CfgNode({"RATE": 0.1})
    assert Base(3).values == (3, 0.5, "none")
    assert Base(cfg, 3).values == (3, 0.1, "none")
    assert Base(cfg=cfg, size=3, name="x").values == (3, 0.1, "x")
    assert Base(cfg, size=3, rate=0.7).values == (3, 0.7, "none")  # what from_config does not name goes past it
    assert Derived(cfg, extra=1).values == (101, 0.5, "none")


def test_configurable_functions():
    @configurable(from_config=lambda cfg, scale: {"value": cfg.RATE * scale})
    def double(value: float) -> float:
        return 2 * value

    assert double(4) == 8
    assert double(CfgNode({"RATE": 3.0}), 10) == 60
    assert callable(double.from_config)


def test_configurable_errors():
    class Without:
        @configurable
        def __init__(self):
            pass

    class NotAClassmethod(Without):
        def from_config(self, cfg):
            return {}

    class WrongName(Without):
        @classmethod
        def from_config(cls, config):
            return {}

    cfg = CfgNode()
    with pytest.raises(AttributeError, match="must have a 'from_config' classmethod"):
        Without(cfg)
    with pytest.raises(TypeError, match="from_config"):
        NotAClassmethod(cfg)
    with pytest.raises(TypeError, match="'cfg' as the first argument"):
        WrongName(cfg)
