"""What a user can get wrong ends in one message with file, value and remedy, exit status 1, and nothing half-written.

What can reasonably be read is read correctly. Pictures and videos that the demo is given are in test_demo.py.
"""

import json
import os
import subprocess
import sys

import detectron2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from PIL import Image
from tiny import CONFIG, OPTIONS, ROOT, tiny_config
from torch.utils.data import DataLoader

from mask2former.data.datasets.register_shapes import register_all_shapes
from mask2former.data.loader import RunPosition, SeededDataset, build_train_loader
from mask2former.data.mappers import build_mapper
from mask2former.user_errors import told_in_one_message

SCRIPT = ROOT / "tools" / "train_net.py"
sys.path.insert(0, str(SCRIPT.parent))

import train_net  # noqa: E402

embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream clips them to white")


@pytest.fixture
def message_of(tmp_path):
    """Runs train_net with the tiny config and returns what it says on failing; checks that no run was left behind."""

    def run(*options: object, config=CONFIG, flags=()) -> str:
        out = tmp_path / "out"
        words = ["--config-file", str(config), *flags, *OPTIONS, "OUTPUT_DIR", str(out), *map(str, options)]
        with pytest.raises(SystemExit) as end:
            train_net.main(train_net.default_argument_parser().parse_args(words))
        assert not list(tmp_path.rglob("model_*")) and not list(tmp_path.rglob("last_checkpoint"))
        assert isinstance(end.value.code, str)  # Python prints a text and exits with status 1
        return end.value.code

    return run


# ---- settings


def test_the_script_ends_with_status_1_and_one_line_on_stderr(tmp_path):
    command = [sys.executable, str(SCRIPT), "--config-file", str(CONFIG), "SOLVER.BASE_LRR", "0.1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr + ended.stdout
    assert ended.stderr.splitlines()[-1].startswith("error: Non-existent") and "SOLVER.BASE_LRR" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("SOLVER: {BASE_LRR: 0.1}", ["BASE_LRR"]),
        ("SOLVER: {BASE_LR: high}", ["BASE_LR", "high", "float"]),
        ("MODEL: [1", ["while parsing"]),
        ("_BASE_: gone.yaml", ["gone.yaml"]),
        ("MODEL: {META_ARCHITECTURE: Mask3Former}", ["MODEL.META_ARCHITECTURE is 'Mask3Former'", "configs/"]),
        (b"\x89PNG\xff\xfe", ["bad.yaml", "not a text file"]),
    ],
)
def test_a_wrong_config_file(message_of, tmp_path, content, said):
    config = tmp_path / "bad.yaml"
    config.write_bytes(content if isinstance(content, bytes) else f"VERSION: 2\n{content}\n".encode())
    message = message_of(config=config)
    assert all(part in message for part in said), message


def test_a_config_that_is_not_there(message_of):
    assert message_of(config="configs/gone.yaml") == (
        "error: There is no config file configs/gone.yaml: check --config-file."
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["SOLVER.BASE_LR", "high"], ["SOLVER.BASE_LR", "high", "float"]),
        (["SOLVER.BASE_LR"], ["odd length", "pairs"]),
        (["SOLVER.OPTIMIZER", "ADAM"], ["SOLVER.OPTIMIZER is 'ADAM'", "ADAMW or SGD"]),
        (["INPUT.DATASET_MAPPER_NAME", "coco"], ["INPUT.DATASET_MAPPER_NAME is 'coco'", "coco_panoptic_lsj"]),
        (["DATASETS.TRAIN", "()"], ["DATASETS.TRAIN is empty"]),
        (["DATASETS.TRAIN", "('my_photos',)"], ["my_photos", "shapes_train_panoptic"]),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5], ["has a segment with category_id", "expected 0 to 4", ".jpg"]),
        (["MODEL.WEIGHTS", "gone.pth"], ["gone.pth"]),
    ],
)
def test_a_wrong_setting(tiny_shapes, message_of, options, said):
    message = message_of(*options)
    assert all(part in message for part in said), message


@pytest.mark.parametrize("content", [b"", b"no weights", b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_weights_that_are_damaged(tiny_shapes, message_of, tmp_path, content, flags):
    (tmp_path / "weights.pth").write_bytes(content)
    assert f"{tmp_path}/weights.pth" in message_of("MODEL.WEIGHTS", tmp_path / "weights.pth", flags=flags)


def test_a_data_folder_that_is_not_there(tiny_shapes, tmp_path, message_of):
    for name in [name for name in DatasetCatalog.list() if name.startswith("shapes_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_all_shapes(str(tmp_path / "nowhere"))
    message = message_of()
    assert f"{tmp_path}/nowhere/shapes/train" in message and "prepare_shapes.py" in message


def test_an_output_folder_that_cannot_be_written_to(message_of, tmp_path):
    (tmp_path / "file").write_text("")
    message = message_of("OUTPUT_DIR", tmp_path / "file" / "out")
    assert message.startswith(f"error: OUTPUT_DIR {tmp_path}/file/out cannot be written to (Not a directory)")


# ---- images and annotations


COLOUR = [200, 100, 50]


@pytest.fixture
def save(tmp_path):
    def save(name: str, pixels: np.ndarray, mode: str | None = None, **options) -> str:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        (image.convert(mode) if mode else image).save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


def picture() -> np.ndarray:
    return np.full((40, 60, 3), COLOUR, np.uint8)


def record_of(file_name: str, size: tuple[int, int] = (60, 40), **changes) -> dict:
    """A dataset dict with one instance, on the left half."""
    width, height = size
    half = width / 2
    annotation = {
        "bbox": [0, 0, half, height],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[0, 0, half, 0, half, height, 0, height]],
        **changes,
    }
    annotation = {key: value for key, value in annotation.items() if value is not ...}
    return {"file_name": file_name, "width": width, "height": height, "image_id": 1, "annotations": [annotation]}


@pytest.fixture
def example_of(tmp_path):
    """From a dataset dict to what the model trains on, as in the training loader. Not jittered: all of the image."""
    options = ("INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj", "INPUT.MIN_SCALE", 1.0, "INPUT.MAX_SCALE", 1.0)
    mapper = build_mapper(tiny_config(tmp_path, *options, "INPUT.RANDOM_FLIP", "none"))
    return lambda record: SeededDataset([record], mapper, RunPosition(0))[0]


def test_images_of_every_kind_are_read_in_their_colours(example_of, save):
    rgb, grey = picture(), np.full((40, 60), 200, np.uint8)
    alpha = np.dstack([rgb, np.full((40, 60), 128, np.uint8)])
    kinds = {
        save("rgb.png", rgb): COLOUR,
        save("grey.png", grey): [200] * 3,
        save("grey.jpg", grey): [200] * 3,
        save("rgba.png", alpha): COLOUR,
        save("palette.png", rgb, "P"): None,  # to the nearest of 256 colours
        save("cmyk.jpg", rgb, "CMYK"): COLOUR,
        save("bitmap.png", grey > 100): [255] * 3,
    }
    for name, colour in kinds.items():
        example = example_of(record_of(name))
        assert example["image"].shape == (3, 64, 64), name
        if colour:
            assert np.allclose(example["image"][:, 20, 30], colour, atol=3), name
        # The image becomes 43 of 64 rows; the instance is its left half.
        assert example["instances"].gt_masks.nonzero().max(0).values.tolist() == pytest.approx([0, 42, 31], abs=1)


@embedded_only
def test_grey_images_of_16_bit_are_scaled(example_of, save):
    example = example_of(record_of(save("deep.png", np.full((40, 60), 200 * 257, np.uint16))))
    assert example["image"][:, 20, 30].tolist() == [200] * 3


def test_a_rotated_image_is_upright_and_its_mask_is_where_the_object_is(example_of, save):
    upright = picture()
    upright[:, :30] = [10, 20, 250]  # the instance
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned, to be shown turned by 90 degrees
    name = save("turned.jpg", np.rot90(upright), exif=exif, quality=95)
    example = example_of(record_of(name))
    inside = example["image"][:, example["instances"].gt_masks[0].bool()].float()
    assert np.allclose(inside.median(1).values, [10, 20, 250], atol=6)


def test_an_image_of_one_pixel_is_an_example(example_of, save):
    example = example_of(record_of(save("one.png", picture()[:1, :1]), (1, 1), segmentation=[[0, 0, 1, 0, 1, 1, 0, 1]]))
    assert (example["image"] == np.reshape(COLOUR, (3, 1, 1))).all() and len(example["instances"]) == 1


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "truncated"])
def test_an_image_that_cannot_be_read_is_named(example_of, save, tmp_path, kind):
    name = save("image.jpg", np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    whole = (tmp_path / "image.jpg").read_bytes()
    if kind == "missing":
        os.remove(name)
    else:
        content = {"text": b"<html>404</html>", "empty": b"", "truncated": whole[: len(whole) // 2]}[kind]
        (tmp_path / "image.jpg").write_bytes(content)
    with pytest.raises((OSError, ValueError), match=r"image\.jpg"):
        example_of(record_of(name))


def test_an_image_of_another_size_than_annotated_is_named(example_of, save):
    with pytest.raises(ValueError, match=r"image\.png, got \(40, 60\), expect \(50, 80\)"):
        example_of(record_of(save("image.png", picture().transpose(1, 0, 2)), (50, 80)) | {"width": 50, "height": 80})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"segmentation": [[0, 0, 30, 0]]}, "4 coordinates"),
        ({"segmentation": [[0, 0, 30, 0, 10, 0, 4]]}, "7"),
        ({"segmentation": None}, "NoneType"),
        ({"segmentation": 5}, "int"),
        ({"bbox": ...}, "bbox"),
        ({"category_id": ...}, "category_id"),
        ({"category_id": 13}, "class 13, expected 0 to 12"),
        ({"category_id": -1}, "class -1, expected 0 to 12"),
        ({"category_id": "ball"}, "ball"),
    ],
)
def test_an_annotation_that_makes_no_sense_names_the_image(example_of, save, changes, said):
    name = save("image.png", picture())
    with pytest.raises(ValueError, match=r"image\.png") as error:
        example_of(record_of(name, **changes))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"segmentation": []},
        {"segmentation": [[0, 0, 30, 0, 10, 0]]},  # no area
        {"segmentation": [[100, 100, 130, 100, 130, 140]], "bbox": [100, 100, 30, 40]},  # outside the image
        {"iscrowd": 1},
        {"segmentation": ...},
    ],
)
def test_an_annotation_without_a_pixel_is_no_target(example_of, save, changes):
    example = example_of(record_of(save("image.png", picture()), **changes))
    assert len(example["instances"]) == 0 and example["instances"].gt_masks.shape == (0, 64, 64)


def test_what_lies_outside_the_image_is_cut_off(example_of, save):
    beyond = {"segmentation": [[-20, -20, 30, -20, 30, 100, -20, 100]], "bbox": [-20, -20, 50, 120]}
    name = save("image.png", picture())
    cut, whole = example_of(record_of(name, **beyond)), example_of(record_of(name))
    mask, expected = (example["instances"].gt_masks[0] & ~example["padding_mask"] for example in (cut, whole))
    assert (mask ^ expected).sum() <= 43  # a column of pixels, at the polygon's edge


def test_a_coco_file_without_annotations_loads_and_is_told_of(tmp_path, save, caplog):
    save("1.png", picture())
    images = [{"id": 1, "file_name": "1.png", "width": 60, "height": 40}]
    content = {"images": images, "annotations": [], "categories": [{"id": 3, "name": "thing"}]}
    (tmp_path / "empty.json").write_text(json.dumps(content))
    DatasetCatalog.register(
        "test_bad_empty", lambda: load_coco_json(str(tmp_path / "empty.json"), str(tmp_path), "test_bad_empty")
    )
    try:
        cfg = tiny_config(
            tmp_path, "DATASETS.TRAIN", ("test_bad_empty",), "INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj",
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1,
        )  # fmt: skip
        batch = next(iter(build_train_loader(cfg, build_mapper(cfg))))
    finally:
        DatasetCatalog.remove("test_bad_empty")
        MetadataCatalog.remove("test_bad_empty")
    assert [len(image["instances"]) for image in batch] == [0, 0]
    assert "None of the images of test_bad_empty has an annotation" in caplog.text


# ---- which errors are for users


def test_a_message_from_a_worker_is_the_message_alone(tmp_path, save):
    dataset = SeededDataset([{"file_name": "a.jpg"}], Refusing(), RunPosition(0))
    with pytest.raises(SystemExit) as end, told_in_one_message():
        next(iter(DataLoader(dataset, num_workers=1)))
    assert end.value.code == (
        "error: a.jpg cannot be trained on: no mask. Repair the file or its annotations, or leave the image out of the "
        "data set."
    )


class Refusing:
    def __call__(self, record: dict) -> dict:
        raise ValueError("no mask")


def test_bugs_keep_their_traceback():
    with pytest.raises(ValueError, match="broadcast"), told_in_one_message():
        np.random.default_rng(0).normal(np.zeros(2), np.zeros(3))
    with pytest.raises(RuntimeError), told_in_one_message():
        raise RuntimeError("something else")
    with pytest.raises(SystemExit, match="error: KEY is missing"), told_in_one_message():
        raise KeyError("KEY is missing")
