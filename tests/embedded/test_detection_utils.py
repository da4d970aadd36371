"""Reading images of every kind, and annotations from file to instances."""

import logging
from pathlib import Path

import cv2
import detectron2
import detectron2.data.transforms as T
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from PIL import Image

embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream does otherwise")

SQUARE = [1.0, 1, 4, 1, 4, 4, 1, 4]


def saved(tmp_path, image, name="image.png", **options):
    """Write an array or a Pillow image, return its path."""
    path = tmp_path / name
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return str(path)


def annotation(**changes):
    return {
        "bbox": [1.0, 1, 3, 3],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 2,
        "segmentation": [list(SQUARE)],
        **changes,
    }


class TestReadImage:
    def test_rgb_bgr_grey_and_own_mode(self, tmp_path):
        pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
        path = saved(tmp_path, pixels)
        np.testing.assert_array_equal(utils.read_image(path, "RGB"), pixels)
        np.testing.assert_array_equal(utils.read_image(path, "BGR"), pixels[:, :, ::-1])
        np.testing.assert_array_equal(utils.read_image(path), pixels)
        grey = utils.read_image(path, "L")
        assert grey.shape == (2, 4, 1) and grey.dtype == np.uint8
        assert grey[0, 0, 0] == 1  # 0.299 * 0 + 0.587 * 1 + 0.114 * 2 = 0.8

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, tmp_path, orientation):
        stored = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
        upright = {  # where the first row and the first column of the stored image are in the scene
            1: stored,  # top, left
            2: stored[:, ::-1],  # top, right
            3: stored[::-1, ::-1],  # bottom, right
            4: stored[::-1],  # bottom, left
            5: stored.T,  # left, top
            6: np.rot90(stored, -1),  # right, top
            7: stored[::-1, ::-1].T,  # right, bottom
            8: np.rot90(stored),  # left, bottom
        }
        exif = Image.Exif()
        exif[274] = orientation
        path = saved(tmp_path, stored, exif=exif)
        np.testing.assert_array_equal(utils.read_image(path, "RGB")[..., 0], upright[orientation])

    @embedded_only
    def test_broken_exif_leaves_the_pixels(self, tmp_path, caplog):
        path = saved(tmp_path, np.full((2, 3), 9, np.uint8), exif=b"nonsense")
        with caplog.at_level(logging.WARNING):
            assert utils.read_image(path, "RGB").tolist() == [[[9, 9, 9]] * 3] * 2
        assert "EXIF" in caplog.text and "image.png" in caplog.text

    def test_grey_becomes_three_channels(self, tmp_path):
        path = saved(tmp_path, np.array([[7, 9]], np.uint8))
        assert utils.read_image(path, "RGB").tolist() == [[[7] * 3, [9] * 3]]

    def test_transparency_is_dropped(self, tmp_path):
        path = saved(tmp_path, np.array([[[10, 20, 30, 0]]], np.uint8))
        assert utils.read_image(path, "RGB").tolist() == [[[10, 20, 30]]]
        path = saved(tmp_path, np.array([[[10, 0]]], np.uint8))  # grey with transparency
        assert utils.read_image(path, "RGB").tolist() == [[[10, 10, 10]]]

    def test_cmyk_becomes_rgb(self, tmp_path):
        image = Image.new("CMYK", (2, 1), (0, 255, 255, 0))  # all magenta and yellow: red
        path = saved(tmp_path, image, "image.tif")
        assert utils.read_image(path, "BGR").tolist() == [[[0, 0, 255]] * 2]

    def test_palette_gives_colours_or_indices(self, tmp_path):
        image = Image.fromarray(np.array([[0, 1, 1]], np.uint8)).convert("P")
        image.putpalette([5, 6, 7, 200, 100, 50])
        path = saved(tmp_path, image)
        assert utils.read_image(path).tolist() == [[0, 1, 1]]
        assert utils.read_image(path, "RGB").tolist() == [[[5, 6, 7], [200, 100, 50], [200, 100, 50]]]

    @pytest.mark.parametrize("format", ["RGB", "BGR", "L", None])
    def test_one_pixel(self, tmp_path, format):
        path = saved(tmp_path, np.array([[[8, 8, 8]]], np.uint8))
        assert (utils.read_image(path, format) == 8).all()
        assert utils.read_image(path, format).shape[:2] == (1, 1)

    @pytest.mark.parametrize("name", ["image.png", "image.tif"])
    def test_sixteen_bit_stays_without_a_format(self, tmp_path, name):
        pixels = np.array([[0, 300, 65535]], np.uint16)
        read = utils.read_image(saved(tmp_path, pixels, name))
        assert read.dtype == np.uint16 and read.tolist() == pixels.tolist()

    @embedded_only
    @pytest.mark.parametrize("name", ["image.png", "image.tif"])
    @pytest.mark.parametrize("format", ["RGB", "BGR"])
    def test_sixteen_bit_photos_are_scaled_not_clipped(self, tmp_path, name, format):
        path = saved(tmp_path, np.array([[0, 257, 65406, 65535]], np.uint16), name)
        assert utils.read_image(path, format)[..., 0].tolist() == [[0, 1, 254, 255]]  # 65406 / 257 = 254.498

    def test_sixteen_bit_colour_loses_the_low_byte(self, tmp_path):
        path = str(tmp_path / "image.png")
        cv2.imwrite(path, np.full((1, 2, 3), 0x1234, np.uint16))
        assert (utils.read_image(path, "RGB") == 0x12).all()

    @embedded_only
    def test_sixteen_bit_labels_are_exact_or_refused(self, tmp_path):
        small = saved(tmp_path, np.array([[3, 255]], np.uint16), "small.png")
        assert utils.read_image(small, "L")[..., 0].tolist() == [[3, 255]]
        large = saved(tmp_path, np.array([[3, 256]], np.uint16), "large.png")
        with pytest.raises(ValueError, match=r"large\.png.*3 to 256.*format=None"):
            utils.read_image(large, "L")

    @embedded_only
    def test_float_pixels_are_refused_as_a_photo(self, tmp_path):
        path = saved(tmp_path, np.array([[0.5, 1]], np.float32), "image.tif")
        assert utils.read_image(path).tolist() == [[0.5, 1]]
        with pytest.raises(ValueError, match=r"image\.tif.*8 or 16 bit"):
            utils.read_image(path, "RGB")

    @embedded_only
    @pytest.mark.parametrize("name", ["image.png", "image.jpg"])
    def test_a_truncated_file_is_named(self, tmp_path, name):
        path = saved(tmp_path, np.random.randint(0, 256, (40, 40, 3), dtype=np.uint8), name)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        with pytest.raises(OSError, match=r"image\.\w+ is damaged or incomplete .*again"):
            utils.read_image(path, "RGB")

    @embedded_only
    @pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<html></html>"])
    def test_what_is_no_image_is_named(self, tmp_path, content):
        path = tmp_path / "image.jpg"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"image\.jpg is not an image"):
            utils.read_image(str(path), "RGB")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            utils.read_image(str(tmp_path / "nowhere.jpg"), "RGB")

    def test_yuv_and_back(self, tmp_path):
        pixels = np.array([[[200, 100, 50], [0, 255, 3]]], np.uint8)
        yuv = utils.read_image(saved(tmp_path, pixels), "YUV-BT.601")
        assert yuv[0, 0, 0] == pytest.approx((0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255)
        rgb = utils.convert_image_to_rgb(yuv, "YUV-BT.601")
        assert np.abs(rgb.astype(int) - pixels).max() <= 1

    def test_convert_back_from_bgr_and_grey(self):
        bgr = np.array([[[1, 2, 3]]], np.uint8)
        assert utils.convert_image_to_rgb(bgr, "BGR").tolist() == [[[3, 2, 1]]]
        assert utils.convert_image_to_rgb(torch.as_tensor(bgr), "RGB").tolist() == [[[1, 2, 3]]]
        assert utils.convert_image_to_rgb(bgr[..., :1], "L").tolist() == [[1]]


@embedded_only
class TestReadLabelMap:
    def test_grey_palette_sixteen_bit_one_bit(self, tmp_path):
        labels = np.array([[0, 1, 1]], np.uint8)
        palette = Image.fromarray(labels).convert("P")
        palette.putpalette([5, 6, 7, 200, 100, 50])
        kinds = [labels, palette, labels.astype(np.uint16), Image.fromarray(labels.astype(bool))]
        kinds += [np.stack([labels] * 3, -1), np.stack([labels, labels * 0 + 255], -1)]
        for i, kind in enumerate(kinds):
            assert utils.read_label_map(saved(tmp_path, kind, f"{i}.png")).tolist() == [[0, 1, 1]]

    def test_colours_are_refused(self, tmp_path):
        path = saved(tmp_path, np.array([[[1, 2, 3]]], np.uint8), "labels.png")
        with pytest.raises(ValueError, match=r"labels\.png is a colour image"):
            utils.read_label_map(path)


class TestCheckImageSize:
    def test_missing_sizes_are_filled_in(self):
        dataset_dict = {"width": 6}
        utils.check_image_size(dataset_dict, np.zeros((4, 6, 3)))
        assert dataset_dict == {"width": 6, "height": 4}

    def test_another_size_is_refused(self):
        dataset_dict = {"file_name": "a.jpg", "width": 4, "height": 6}
        with pytest.raises(utils.SizeMismatchError, match=r"image a\.jpg, got \(6, 4\), expect \(4, 6\)") as error:
            utils.check_image_size(dataset_dict, np.zeros((4, 6, 3)))
        assert isinstance(error.value, ValueError)


class TestTransformInstanceAnnotations:
    def test_box_and_polygons_move_in_place(self):
        given = annotation()
        result = utils.transform_instance_annotations(given, T.TransformList([T.HFlipTransform(10)]), (8, 10))
        assert result is given
        assert list(given["bbox"]) == [6, 1, 9, 4] and given["bbox_mode"] == BoxMode.XYXY_ABS
        assert given["segmentation"][0].tolist() == [9, 1, 6, 1, 6, 4, 9, 4]

    def test_the_given_polygon_is_not_changed(self):
        polygon = np.array(SQUARE)
        utils.transform_instance_annotations(annotation(segmentation=[polygon]), [T.HFlipTransform(10)], (8, 10))
        assert polygon.tolist() == SQUARE

    def test_boxes_are_cut_at_the_image(self):
        partly = annotation(bbox=[-5, 2, 50, 50])
        utils.transform_instance_annotations(partly, [T.NoOpTransform()], (8, 10))
        assert list(partly["bbox"]) == [0, 2, 10, 8]
        outside = annotation(bbox=[20, 20, 5, 5])
        utils.transform_instance_annotations(outside, [T.NoOpTransform()], (8, 10))
        assert list(outside["bbox"]) == [10, 8, 10, 8]

    def test_a_crop_may_leave_no_polygon(self):
        given = annotation()
        utils.transform_instance_annotations(given, [T.CropTransform(5, 5, 3, 3)], (3, 3))
        assert given["segmentation"] == [] and list(given["bbox"]) == [0, 0, 0, 0]

    def test_run_lengths_become_a_mask(self):
        mask = np.zeros((8, 10), np.uint8)
        mask[1:4, 1:4] = 1
        rle = mask_util.encode(np.asfortranarray(mask))
        given = annotation(segmentation=rle)
        utils.transform_instance_annotations(given, [T.HFlipTransform(10)], (8, 10))
        assert given["segmentation"].dtype == np.uint8
        np.testing.assert_array_equal(given["segmentation"], mask[:, ::-1])

    def test_run_lengths_of_another_size_are_refused(self):
        rle = mask_util.encode(np.zeros((4, 4), np.uint8, order="F"))
        with pytest.raises(AssertionError):
            utils.transform_instance_annotations(annotation(segmentation=rle), [T.NoOpTransform()], (8, 10))

    def test_other_segmentations_are_refused(self):
        with pytest.raises(ValueError):
            utils.transform_instance_annotations(annotation(segmentation="x"), [T.NoOpTransform()], (8, 10))

    @embedded_only
    @pytest.mark.parametrize("polygon", [[], [1, 1], [1, 1, 2, 2], [1, 1, 2, 2, 3, 3, 4]])
    def test_degenerate_polygons_are_refused(self, polygon):
        with pytest.raises(ValueError, match=f"polygon from {len(polygon)} coordinates"):
            utils.transform_instance_annotations(annotation(segmentation=[polygon]), [T.NoOpTransform()], (8, 10))

    @embedded_only
    def test_a_missing_box_is_named(self):
        given = annotation()
        del given["bbox"]
        with pytest.raises(ValueError, match="no bbox"):
            utils.transform_instance_annotations(given, [T.NoOpTransform()], (8, 10))


class TestAnnotationsToInstances:
    def test_polygons(self):
        instances = utils.annotations_to_instances([annotation(), annotation(category_id=0)], (8, 10))
        assert instances.image_size == (8, 10)
        assert instances.gt_boxes.tensor.tolist() == [[1, 1, 4, 4]] * 2
        assert instances.gt_classes.tolist() == [2, 0] and instances.gt_classes.dtype == torch.int64
        assert isinstance(instances.gt_masks, PolygonMasks)

    def test_bit_masks_from_all_kinds_are_the_same(self):
        mask = np.zeros((8, 10), np.uint8)
        mask[1:4, 1:4] = 1
        kinds = [[SQUARE], mask_util.encode(np.asfortranarray(mask)), mask]
        annos = [annotation(segmentation=kind) for kind in kinds]
        masks = utils.annotations_to_instances(annos, (8, 10), mask_format="bitmask").gt_masks
        assert isinstance(masks, BitMasks)
        for got in masks:
            np.testing.assert_array_equal(got.numpy(), mask.astype(bool))

    @embedded_only
    def test_uncompressed_run_lengths(self):
        rle = {"size": [2, 3], "counts": [1, 2, 3]}  # by columns: 0, 1 1, 0 0 0
        masks = utils.annotations_to_instances([annotation(segmentation=rle)], (2, 3), "bitmask").gt_masks
        assert masks.tensor[0].int().tolist() == [[0, 1, 0], [1, 0, 0]]

    def test_no_polygons_left_is_an_empty_bitmap(self):
        masks = utils.annotations_to_instances([annotation(segmentation=[])], (8, 10), "bitmask").gt_masks
        assert masks.nonempty().tolist() == [False]

    def test_no_annotations(self):
        instances = utils.annotations_to_instances([], (8, 10))
        assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)
        assert instances.gt_classes.dtype == torch.int64 and not instances.has("gt_masks")

    def test_bitmaps_need_the_bitmask_format(self):
        with pytest.raises(ValueError, match="Failed to use mask_format=='polygon'"):
            utils.annotations_to_instances([annotation(segmentation=np.zeros((8, 10), np.uint8))], (8, 10))

    @embedded_only
    def test_masks_on_a_part_of_the_annotations(self):
        bare = annotation()
        del bare["segmentation"]
        with pytest.raises(ValueError, match="1 of 2 annotations of an image have no `segmentation`"):
            utils.annotations_to_instances([annotation(), bare], (8, 10))


class TestFilterEmptyInstances:
    def instances(self):
        return Instances(
            (8, 10),
            gt_boxes=Boxes([[0, 0, 2, 2], [3, 3, 3, 5], [0, 0, 2, 2]]),
            gt_masks=PolygonMasks([[SQUARE], [SQUARE], []]),
            ids=torch.arange(3),
        )

    @pytest.mark.parametrize(
        ("by_box", "by_mask", "kept"), [(True, True, [0]), (True, False, [0, 2]), (False, True, [0, 1])]
    )
    def test_by_box_and_mask(self, by_box, by_mask, kept):
        assert utils.filter_empty_instances(self.instances(), by_box, by_mask).ids.tolist() == kept

    def test_the_threshold_and_the_mask_of_kept_ones(self):
        filtered, kept = utils.filter_empty_instances(self.instances(), box_threshold=2, return_mask=True)
        assert len(filtered) == 0 and kept.tolist() == [False] * 3

    def test_without_masks_boxes_decide(self):
        instances = self.instances()
        instances.remove("gt_masks")
        assert utils.filter_empty_instances(instances).ids.tolist() == [0, 2]


def test_metadata_that_differs_is_refused():
    for name, classes in (("consistency_a", ["x"]), ("consistency_b", ["x"]), ("consistency_c", ["y"])):
        MetadataCatalog.get(name).thing_classes = classes
    utils.check_metadata_consistency("thing_classes", ["consistency_a", "consistency_b"])
    with pytest.raises(ValueError):
        utils.check_metadata_consistency("thing_classes", ["consistency_a", "consistency_c"])


def test_a_crop_around_an_instance_holds_its_centre():
    for _ in range(20):
        box = {"bbox": [12, 3, 14, 7], "bbox_mode": BoxMode.XYXY_ABS}
        crop = utils.gen_crop_transform_with_instance((6, 8), (10, 20), box)
        assert (crop.h, crop.w) == (6, 8)
        assert 0 <= crop.x0 <= 13 <= crop.x0 + 8 <= 20 + 1 and 0 <= crop.y0 <= 5 <= crop.y0 + 6 <= 10
