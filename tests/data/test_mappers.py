"""The five training mappers on tiny images whose targets are known by hand."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_utils

from mask2former import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)

H, W = 8, 12
LEFT = np.zeros((H, W), dtype=np.uint8)
LEFT[:, :4] = 1  # the left third


@pytest.fixture
def image(tmp_path):
    pixels = np.arange(H * W * 3, dtype=np.uint8).reshape(H, W, 3)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return {"file_name": str(tmp_path / "image.png"), "height": H, "width": W, "image_id": 1}


def save(path, array):
    Image.fromarray(array).save(path)
    return str(path)


def semantic(augmentations=(), size_divisibility=-1, num_classes=None):
    return MaskFormerSemanticDatasetMapper(
        True,
        augmentations=list(augmentations),
        image_format="RGB",
        ignore_label=255,
        size_divisibility=size_divisibility,
        num_classes=num_classes,
    )


def test_semantic_gives_one_mask_per_class_and_none_for_the_ignore_label(image, tmp_path):
    labels = np.full((H, W), 255, dtype=np.uint8)
    labels[:, :4] = 7
    labels[:2, 8:] = 3
    out = semantic()({**image, "sem_seg_file_name": save(tmp_path / "labels.png", labels)})
    assert out["image"].shape == (3, H, W) and out["image"].dtype == torch.uint8
    assert out["instances"].gt_classes.tolist() == [3, 7]
    assert out["instances"].gt_masks.sum((1, 2)).tolist() == [8, 32]
    assert out["sem_seg"].dtype == torch.int64 and (out["sem_seg"] == torch.from_numpy(labels).long()).all()
    assert "sem_seg_file_name" not in out and out["image_id"] == 1


def test_padding_fills_image_with_128_labels_with_ignore_and_masks_with_nothing(image, tmp_path):
    out = semantic(size_divisibility=16)({**image, "sem_seg_file_name": save(tmp_path / "l.png", LEFT)})
    assert (
        out["image"].shape == (3, 16, 16)
        and (out["image"][:, H:] == 128).all()
        and (out["image"][:, :, W:] == 128).all()
    )
    assert (out["sem_seg"][H:] == 255).all()
    assert out["instances"].image_size == (16, 16)
    assert out["instances"].gt_masks[:, H:].sum() == 0


def test_an_image_larger_than_the_divisibility_is_cropped_to_it(image, tmp_path):
    out = semantic(size_divisibility=8)({**image, "sem_seg_file_name": save(tmp_path / "l.png", LEFT)})
    assert out["image"].shape == (3, 8, 8)
    assert out["instances"].gt_masks[1].sum() == 32


def test_an_image_of_ignored_pixels_only_has_no_targets(image, tmp_path):
    labels = np.full((H, W), 255, dtype=np.uint8)
    out = semantic()({**image, "sem_seg_file_name": save(tmp_path / "l.png", labels)})
    assert len(out["instances"]) == 0 and out["instances"].gt_masks.shape == (0, H, W)


def test_a_class_beyond_the_number_of_classes_names_the_file(image, tmp_path):
    labels = save(tmp_path / "l.png", LEFT * 9)
    with pytest.raises(ValueError, match=r"image\.png has class 9, expected 0 to 4"):
        semantic(num_classes=5)({**image, "sem_seg_file_name": labels})


def test_a_label_image_of_another_size_names_both_files(image, tmp_path):
    labels = save(tmp_path / "l.png", LEFT[:, :5].copy())
    with pytest.raises(ValueError, match=r"l\.png is 5x8, but its image .*image\.png is 12x8"):
        semantic()({**image, "sem_seg_file_name": labels})


def test_semantic_refuses_instance_annotations(image):
    with pytest.raises(ValueError, match="mask_former_instance"):
        semantic()({**image, "annotations": []})


def test_label_maps_are_resized_by_the_floor_rule_and_panoptic_maps_by_pixel_centres(tmp_path):
    """detectron2 resizes uint8 with Pillow and all else with torch; published targets rest on that (5.1, 2)."""
    row = np.tile(np.arange(10, dtype=np.uint8), (10, 1))
    file = save(tmp_path / "image.png", np.zeros((10, 10, 3), dtype=np.uint8))
    record = {
        "file_name": file,
        "height": 10,
        "width": 10,
        "sem_seg_file_name": save(tmp_path / "s.png", row),
        "pan_seg_file_name": save(tmp_path / "p.png", id2rgb(row.astype(np.int64))),
        "segments_info": [{"id": i, "category_id": i, "iscrowd": 0} for i in range(1, 10)],
    }
    mapper = MaskFormerPanopticDatasetMapper(
        True, augmentations=[T.Resize((4, 4))], image_format="RGB", ignore_label=255, size_divisibility=-1
    )
    out = mapper(record)
    assert out["sem_seg"][0].tolist() == [0, 2, 5, 7]
    assert out["instances"].gt_classes.tolist() == [1, 3, 6, 8]


def panoptic_record(image, tmp_path, ids, segments):
    return {**image, "pan_seg_file_name": save(tmp_path / "pan.png", id2rgb(ids)), "segments_info": segments}


def lsj(scale=1.0, size=16):
    return [T.ResizeScale(scale, scale, size, size), T.FixedSizeCrop((size, size))]


def test_panoptic_reads_ids_beyond_65535_skips_crowd_and_drops_what_is_not_there(image, tmp_path):
    ids = np.zeros((H, W), dtype=np.int64)
    ids[:, :4] = 70000
    ids[:, 4:8] = 2
    segments = [
        {"id": 70000, "category_id": 5, "iscrowd": 0},
        {"id": 2, "category_id": 6, "iscrowd": 1},
        {"id": 3, "category_id": 1, "iscrowd": 0},
    ]
    mapper = COCOPanopticNewBaselineDatasetMapper(True, tfm_gens=[], image_format="RGB")
    out = mapper(panoptic_record(image, tmp_path, ids, segments))
    assert out["instances"].gt_classes.tolist() == [5]
    assert out["instances"].gt_masks.sum() == 4 * H
    assert out["instances"].gt_boxes.tensor.tolist() == [[0, 0, 4, H]]


def test_panoptic_png_with_an_id_the_json_does_not_list_is_an_error(image, tmp_path):
    ids = np.full((H, W), 9, dtype=np.int64)
    mapper = COCOPanopticNewBaselineDatasetMapper(True, tfm_gens=[], image_format="RGB")
    with pytest.raises(ValueError, match=r"image\.png has segment id 9, which its json does not list"):
        mapper(panoptic_record(image, tmp_path, ids, [{"id": 1, "category_id": 0, "iscrowd": 0}]))


def test_padding_of_the_panoptic_map_belongs_to_no_segment(image, tmp_path):
    ids = np.ones((H, W), dtype=np.int64)
    mapper = COCOPanopticNewBaselineDatasetMapper(True, tfm_gens=lsj(), image_format="RGB")
    out = mapper(panoptic_record(image, tmp_path, ids, [{"id": 1, "category_id": 0, "iscrowd": 0}]))
    # 8x12 scaled by 16/12 is 10.67x16, rounded to 11x16; the rest is padding
    assert out["image"].shape == (3, 16, 16)
    assert out["instances"].gt_masks.sum() == 11 * 16


def annotation(segmentation, category=0, crowd=0):
    return {
        "bbox": [0, 0, 4, 8],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": crowd,
    }


SQUARE = [[0.0, 0.0, 4.0, 0.0, 4.0, 8.0, 0.0, 8.0]]


@pytest.mark.parametrize("form", ["polygon", "rle"])
def test_instances_come_from_polygons_and_rle_alike(image, form):
    segmentation = SQUARE if form == "polygon" else mask_utils.encode(np.asfortranarray(LEFT))
    mapper = MaskFormerInstanceDatasetMapper(True, augmentations=[], image_format="RGB", size_divisibility=16)
    out = mapper({**image, "annotations": [annotation(segmentation, 2), annotation(SQUARE, 1, crowd=1)]})
    assert out["instances"].gt_classes.tolist() == [2]
    assert out["instances"].gt_masks[0, :H, :W].equal(torch.from_numpy(LEFT).bool())
    assert "annotations" not in out


def test_lsj_marks_padding_and_drops_instances_that_the_crop_cut_away(image):
    mapper = COCOInstanceNewBaselineDatasetMapper(True, tfm_gens=[T.CropTransform(6, 0, 6, 8)], image_format="RGB")
    out = mapper({**image, "annotations": [annotation(SQUARE)]})
    assert len(out["instances"]) == 0
    mapper = COCOInstanceNewBaselineDatasetMapper(True, tfm_gens=lsj(), image_format="RGB")
    out = mapper({**image, "annotations": [annotation(SQUARE)]})
    assert out["padding_mask"].sum() == 5 * 16 and out["padding_mask"][11:].all()
    assert out["instances"].gt_masks.dtype == torch.uint8


@pytest.mark.parametrize("form", ["polygon", "rle"])
def test_padding_by_the_crop_belongs_to_no_instance(image, form):
    segmentation = SQUARE if form == "polygon" else mask_utils.encode(np.asfortranarray(LEFT))
    mapper = COCOInstanceNewBaselineDatasetMapper(True, tfm_gens=lsj(), image_format="RGB")
    (mask,) = mapper({**image, "annotations": [annotation(segmentation)]})["instances"].gt_masks
    # a third of the columns of 11x16, and none of the 5 rows below
    assert mask[:11].sum() == pytest.approx(11 * 16 / 3, abs=6)
    assert mask[11:].sum() == 0


def test_an_image_without_instances_is_a_legal_example(image):
    mapper = COCOInstanceNewBaselineDatasetMapper(True, tfm_gens=lsj(), image_format="RGB")
    out = mapper({**image, "annotations": []})
    assert out["instances"].gt_classes.dtype == torch.int64
    assert out["instances"].gt_masks.shape == (0, 16, 16) and out["instances"].gt_boxes.tensor.shape == (0, 4)


def test_a_flip_moves_image_and_mask_together(image):
    flip = T.RandomFlip(prob=1.0)
    mapper = MaskFormerInstanceDatasetMapper(True, augmentations=[flip], image_format="RGB", size_divisibility=-1)
    out = mapper({**image, "annotations": [annotation(SQUARE)]})
    assert out["instances"].gt_masks[0, :, 8:].all() and not out["instances"].gt_masks[0, :, :8].any()
    assert out["image"][0, 0, 0] == 33  # red of the last pixel of the first row


def test_mappers_refuse_testing():
    with pytest.raises(ValueError, match="DatasetMapper for testing"):
        MaskFormerInstanceDatasetMapper(False, augmentations=[], image_format="RGB", size_divisibility=-1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("mapper", [MaskFormerInstanceDatasetMapper, COCOInstanceNewBaselineDatasetMapper])
def test_a_polygon_that_is_not_finite_names_the_file(image, mapper, value):
    named = {"tfm_gens": []} if mapper is COCOInstanceNewBaselineDatasetMapper else {"augmentations": []}
    size = {} if mapper is COCOInstanceNewBaselineDatasetMapper else {"size_divisibility": -1}
    polygon = [0, 0, value, 0, 4, 4]
    annotation = {"bbox": [0, 0, 4, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": [polygon]}
    with pytest.raises(ValueError, match=r"image\.png: a polygon of annotation 17 .* NaN or infinite"):
        mapper(True, image_format="RGB", **named, **size)({**image, "annotations": [{**annotation, "id": 17}]})


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_those_of_polygons_drawn_one_by_one_on_the_whole_window(tmp_path, seed):
    """Stars, some beyond the image or crossing themselves, some of several parts, through flip, jitter and crop."""
    rng = np.random.default_rng(seed)
    file = save(tmp_path / "image.png", rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    annotations = []
    for n in range(30):
        angle = np.linspace(0, 2 * np.pi, 9, endpoint=False) * rng.integers(1, 3)
        parts = []
        for _ in range(rng.integers(1, 4)):
            radius = rng.uniform(1, 40) * rng.uniform(0.5, 1, 9)
            x, y = rng.uniform(-10, 100) + radius * np.cos(angle), rng.uniform(-10, 70) + radius * np.sin(angle)
            decimals = int(rng.integers(0, 3))  # whole and half numbers are where rounding could differ
            parts.append(np.stack([x, y], 1).round(decimals).ravel().tolist())
        annotations.append(annotation(parts, n))
    # Twice 96 pixels, or some other size; the image alone decides what the scale is.
    scale = [2.0, 1.0, 0.3, 1.7, 1.25, 0.7][seed]
    augmentations = [T.RandomFlip(), T.ResizeScale(scale, scale, 60, 90), T.FixedSizeCrop((64, 96))]
    sample = {"file_name": file, "height": 60, "width": 90, "annotations": annotations}
    mapper = COCOInstanceNewBaselineDatasetMapper(True, tfm_gens=augmentations, image_format="RGB")
    np.random.seed(seed)
    out = mapper(sample)

    np.random.seed(seed)
    image, transforms = T.apply_transform_gens(augmentations, np.array(Image.open(file)))
    expected = []
    for number, shape in enumerate(annotations):
        polygons = transforms.apply_polygons([np.reshape(part, (-1, 2)) for part in shape["segmentation"]])
        rles = mask_utils.frPyObjects([polygon.ravel().tolist() for polygon in polygons], 64, 96) if polygons else []
        mask = mask_utils.decode(rles).any(2) if rles else np.zeros((64, 96), bool)
        if mask.any():
            expected.append((number, mask))
    assert out["instances"].gt_classes.tolist() == [number for number, _ in expected]
    for mask, box, (_, whole) in zip(
        out["instances"].gt_masks, out["instances"].gt_boxes.tensor.tolist(), expected, strict=True
    ):
        assert (mask.numpy() == whole).all()
        rows, columns = np.nonzero(whole)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (out["image"].numpy() == image.transpose(2, 0, 1)).all()
    assert sample["annotations"] is annotations and isinstance(annotations[0]["segmentation"][0], list)


@pytest.mark.parametrize("seed", range(8))
def test_a_window_of_an_enlarged_image_is_what_pillow_makes_there(seed):
    pytest.importorskip("numba")
    from mask2former.data.resize_kernels import enlarge_window

    rng = np.random.default_rng(seed)
    for _ in range(10):
        height, width = rng.integers(1, 60, 2)
        size = int(rng.integers(height, 200)), int(rng.integers(width, 200))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)[:, :: rng.choice([-1, 1])]
        top, left = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        out = np.full((3, *rng.integers(1, 150, 2)), 7, np.uint8)
        enlarge_window(image, size, top, left, out)
        whole = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        expected = whole[top : top + out.shape[1], left : left + out.shape[2]].transpose(2, 0, 1)
        inside = out[:, : expected.shape[1], : expected.shape[2]]
        assert (inside == expected).all()
        assert (out == 7).sum() - (inside == 7).sum() == out.size - inside.size  # beyond: left alone
