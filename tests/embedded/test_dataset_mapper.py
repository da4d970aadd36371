"""The default mapper on small files."""

import copy

import detectron2
import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.dataset_mapper import DatasetMapper
from detectron2.structures import BitMasks, BoxMode
from PIL import Image

embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream does otherwise")


@pytest.fixture
def dataset_dict(tmp_path):
    """An image of 8 x 10 whose left half has label 1, with one object, one crowd and one empty annotation."""
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[..., 0] = np.arange(10)
    labels = np.zeros((8, 10), np.uint8)
    labels[:, :5] = 1
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    square = [1, 1, 4, 1, 4, 4, 1, 4]
    common = {"bbox_mode": BoxMode.XYWH_ABS, "segmentation": [square]}
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "image_id": 7,
        "annotations": [
            {"bbox": [1, 1, 3, 3], "category_id": 2, **common},
            {"bbox": [1, 1, 3, 3], "category_id": 3, "iscrowd": 1, **common},
            {"bbox": [1, 1, 0, 3], "category_id": 4, **common},
        ],
    }


def test_training(dataset_dict):
    untouched = copy.deepcopy(dataset_dict)
    mapper = DatasetMapper(
        is_train=True, augmentations=[T.RandomFlip(prob=1.0)], image_format="RGB", use_instance_mask=True
    )
    mapped = mapper(dataset_dict)
    assert dataset_dict == untouched
    assert mapped["image"].dtype == torch.uint8 and mapped["image"].shape == (3, 8, 10)
    assert mapped["image"][0, 0].tolist() == list(range(10))[::-1]
    assert mapped["sem_seg"].dtype == torch.int64
    assert mapped["sem_seg"][0].tolist() == [0] * 5 + [1] * 5
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (8, 10, 7)
    assert "annotations" not in mapped and "sem_seg_file_name" not in mapped
    instances = mapped["instances"]  # without the crowd and the box without width
    assert instances.gt_classes.tolist() == [2]
    assert instances.gt_boxes.tensor.tolist() == [[6, 1, 9, 4]]
    assert instances.gt_masks.polygons[0][0].tolist() == [9, 1, 6, 1, 6, 4, 9, 4]


def test_testing_drops_annotations(dataset_dict):
    mapper = DatasetMapper(is_train=False, augmentations=[T.Resize((4, 5))], image_format="BGR")
    mapped = mapper(dataset_dict)
    assert mapped["image"].shape == (3, 4, 5) and mapped["image"][0].max() == 0  # red is the last channel
    assert mapped["sem_seg"].shape == (4, 5)
    assert (mapped["height"], mapped["width"]) == (8, 10)
    assert not {"annotations", "instances", "sem_seg_file_name"} & mapped.keys()


def test_an_empty_list_of_annotations_gives_no_instances(dataset_dict):
    dataset_dict["annotations"] = []
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True)
    instances = mapper(dataset_dict)["instances"]
    assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)


def test_bit_masks_and_boxes_from_them(dataset_dict):
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.CropTransform(2, 0, 6, 6)],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )
    dataset_dict["annotations"][0]["bbox"] = [0, 0, 9, 7]  # looser than the polygon
    instances = mapper(dataset_dict)["instances"]
    assert isinstance(instances.gt_masks, BitMasks)
    assert instances[0].gt_boxes.tensor.tolist() == [[0, 1, 2, 4]]


def test_without_masks_segmentations_are_not_looked_at(dataset_dict):
    dataset_dict["annotations"][0]["segmentation"] = "nonsense"
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
    assert not mapper(dataset_dict)["instances"].has("gt_masks")


def test_boxes_from_masks_need_masks():
    with pytest.raises((ValueError, AssertionError)):
        DatasetMapper(is_train=True, augmentations=[], image_format="RGB", recompute_boxes=True)


@embedded_only
def test_palette_labels_are_indices_and_grey_images_have_a_channel(dataset_dict, tmp_path):
    labels = Image.fromarray(np.eye(8, 10, dtype=np.uint8)).convert("P")
    labels.putpalette([200, 0, 0, 0, 200, 0])
    labels.save(tmp_path / "labels.png")
    mapper = DatasetMapper(is_train=True, augmentations=[T.Resize((8, 10))], image_format="L")
    mapped = mapper(dataset_dict)
    assert mapped["image"].shape == (1, 8, 10)
    assert mapped["sem_seg"].tolist() == np.eye(8, 10, dtype=int).tolist()


class TestFromConfig:
    def test_training(self):
        cfg = get_cfg()
        cfg.INPUT.MIN_SIZE_TRAIN = (4, 6)
        cfg.INPUT.RANDOM_FLIP = "vertical"
        mapper = DatasetMapper(cfg, True)
        resize, flip = mapper.augmentations.augs
        assert isinstance(resize, T.ResizeShortestEdge) and resize.short_edge_length == (4, 6)
        assert flip.vertical and not flip.horizontal
        assert mapper.image_format == "BGR" and mapper.is_train

    def test_a_crop_comes_first_and_boxes_from_masks(self):
        cfg = get_cfg()
        cfg.INPUT.CROP.ENABLED = True
        cfg.MODEL.MASK_ON = True
        mapper = DatasetMapper(cfg, is_train=True)
        assert isinstance(mapper.augmentations.augs[0], T.RandomCrop)
        assert mapper.recompute_boxes and mapper.use_instance_mask

    def test_testing_has_neither_crop_nor_flip(self):
        cfg = get_cfg()
        cfg.INPUT.CROP.ENABLED = True
        mapper = DatasetMapper(cfg, is_train=False)
        assert [type(aug) for aug in mapper.augmentations.augs] == [T.ResizeShortestEdge]
        assert not mapper.is_train and not mapper.recompute_boxes

    def test_no_flip(self):
        cfg = get_cfg()
        cfg.INPUT.RANDOM_FLIP = "none"
        assert len(DatasetMapper(cfg, is_train=True).augmentations.augs) == 1
