"""Structures against numbers worked by hand."""

import copy
import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    PolygonMasks,
    pairwise_ioa,
    pairwise_iou,
    polygons_to_bitmask,
)
from detectron2.structures.boxes import pairwise_intersection

SQUARE = np.array([1.0, 1, 4, 1, 4, 4, 1, 4])


class TestInstances:
    def test_fields_are_attributes(self):
        instances = Instances((4, 6), scores=torch.tensor([0.1, 0.2]))
        instances.names = ["a", "b"]
        assert instances.image_size == (4, 6)
        assert len(instances) == 2
        assert instances.has("names") and not instances.has("gt_boxes")
        assert instances.get("names") == ["a", "b"]
        instances.remove("names")
        assert list(instances.get_fields()) == ["scores"]

    def test_get_fields_is_live(self):
        instances = Instances((4, 6))
        instances.get_fields()["scores"] = torch.zeros(3)
        assert len(instances) == 3

    def test_a_missing_field_is_named(self):
        with pytest.raises(AttributeError, match="Cannot find field 'boxes' in the given Instances!"):
            _ = Instances((4, 6)).boxes

    def test_a_field_of_another_length_is_refused(self):
        instances = Instances((4, 6), scores=torch.zeros(2))
        with pytest.raises(AssertionError, match="Adding a field of length 3 to a Instances of length 2"):
            instances.labels = torch.zeros(3)

    def test_without_fields_there_is_no_length(self):
        with pytest.raises(NotImplementedError):
            len(Instances((4, 6)))

    def test_it_cannot_be_iterated(self):
        with pytest.raises(NotImplementedError):
            iter(Instances((4, 6), scores=torch.zeros(2)))

    @pytest.mark.parametrize(
        ("index", "expected"),
        [
            (1, [11]),
            (-1, [12]),
            (slice(1, None), [11, 12]),
            (torch.tensor([True, False, True]), [10, 12]),
            (torch.tensor([2, 0]), [12, 10]),
            (torch.zeros(3, dtype=torch.bool), []),
        ],
    )
    def test_indexing_selects_in_every_field(self, index, expected):
        boxes = Boxes(torch.tensor([[0.0, 0, i, i] for i in (10, 11, 12)]))
        instances = Instances((40, 60), ids=torch.tensor([10, 11, 12]), boxes=boxes)
        selected = instances[index]
        assert selected.ids.tolist() == expected
        assert selected.boxes.tensor[:, 2].tolist() == expected
        assert selected.image_size == (40, 60)

    def test_indexing_past_the_end(self):
        with pytest.raises(IndexError):
            Instances((4, 6), ids=torch.zeros(3))[3]

    def test_cat_joins_tensors_lists_and_boxes(self):
        parts = [
            Instances((4, 6), ids=torch.tensor([i]), names=[str(i)], boxes=Boxes(torch.full((1, 4), float(i))))
            for i in (1, 2)
        ]
        joined = Instances.cat(parts)
        assert joined.ids.tolist() == [1, 2]
        assert joined.names == ["1", "2"]
        assert joined.boxes.tensor[:, 0].tolist() == [1, 2]

    def test_it_survives_copy_pickle_and_to(self):
        instances = Instances((4, 6), ids=torch.tensor([1]), names=["a"])
        for clone in (copy.deepcopy(instances), pickle.loads(pickle.dumps(instances)), instances.to("cpu")):
            assert clone.ids.tolist() == [1] and clone.names == ["a"] and clone.image_size == (4, 6)

    def test_repr(self):
        instances = Instances((4, 6), a=[1], b=["x"])
        expected = "Instances(num_instances=1, image_height=4, image_width=6, fields=[a: [1], b: ['x']])"
        assert repr(instances) == expected


class TestBoxes:
    def test_area_centers_and_nonempty(self):
        boxes = Boxes([[1, 2, 4, 6], [3, 3, 3, 9]])
        assert boxes.tensor.dtype == torch.float32
        assert boxes.area().tolist() == [12, 0]
        assert boxes.get_centers().tolist() == [[2.5, 4], [3, 6]]
        assert boxes.nonempty().tolist() == [True, False]
        assert boxes.nonempty(threshold=3).tolist() == [False, False]  # a side of 3 is not above 3

    def test_empty_input_has_four_columns(self):
        for empty in ([], torch.zeros(0), torch.zeros(0, 4), np.zeros((0, 4))):
            assert Boxes(empty).tensor.shape == (0, 4)

    def test_clip_and_scale_work_in_place(self):
        boxes = Boxes([[-5.0, -5, 50, 50]])
        boxes.clip((10, 20))
        assert boxes.tensor.tolist() == [[0, 0, 20, 10]]
        boxes.scale(0.5, 2)
        assert boxes.tensor.tolist() == [[0, 0, 10, 20]]

    def test_clip_refuses_infinite_corners(self):
        with pytest.raises(AssertionError, match="infinite or NaN"):
            Boxes([[0, 0, float("inf"), 1]]).clip((10, 10))

    def test_inside_box(self):
        boxes = Boxes([[0, 0, 9, 9], [-1, 0, 9, 9], [0, 0, 10, 9]])
        assert boxes.inside_box((10, 10)).tolist() == [True, False, False]
        assert boxes.inside_box((10, 10), boundary_threshold=2).tolist() == [True, True, True]

    def test_an_int_selects_one_box_and_iteration_gives_rows(self):
        boxes = Boxes([[0, 0, 1, 1], [0, 0, 2, 2]])
        assert boxes[1].tensor.tolist() == [[0, 0, 2, 2]]
        assert [row.shape for row in boxes] == [(4,), (4,)]
        assert len(Boxes.cat([boxes, boxes[0]])) == 3
        assert len(Boxes.cat([])) == 0

    def test_pairwise(self):
        ours = Boxes([[0, 0, 2, 2], [5, 5, 5, 5]])
        theirs = Boxes([[1, 1, 3, 2], [0, 0, 2, 2], [8, 8, 9, 9]])
        assert pairwise_intersection(ours, theirs).tolist() == [[1, 4, 0], [0, 0, 0]]
        torch.testing.assert_close(pairwise_iou(ours, theirs), torch.tensor([[1 / 5, 1, 0], [0, 0, 0]]))
        torch.testing.assert_close(pairwise_ioa(ours, theirs), torch.tensor([[1 / 2, 1, 0], [0, 0, 0]]))

    def test_pairwise_with_nothing(self):
        assert pairwise_iou(Boxes([]), Boxes([[0, 0, 1, 1]])).shape == (0, 1)


class TestBoxMode:
    @pytest.mark.parametrize("container", [list, tuple, np.array, torch.tensor])
    def test_convert_keeps_the_container_and_the_input(self, container):
        box = container([10.0, 20.0, 5.0, 6.0])
        converted = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert type(converted) is type(box)
        assert list(map(float, converted)) == [10, 20, 15, 26]
        back = BoxMode.convert(converted, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        assert list(map(float, back)) == list(map(float, box)) == [10, 20, 5, 6]

    def test_many_at_once(self):
        boxes = np.array([[0.0, 0, 2, 3], [1, 1, 1, 1]])
        converted = BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert converted.tolist() == [[0, 0, 2, 3], [1, 1, 2, 2]]

    def test_the_numbers_in_files(self):
        assert [int(mode) for mode in BoxMode] == [0, 1, 2, 3, 4]
        assert BoxMode.XYWH_ABS == 1

    def test_relative_boxes_are_refused(self):
        with pytest.raises((AssertionError, NotImplementedError)):
            BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)


class TestMasks:
    def test_a_polygon_fills_the_pixels_it_covers(self):
        mask = polygons_to_bitmask([SQUARE], 6, 7)
        assert mask.dtype == bool and mask.shape == (6, 7)
        assert np.argwhere(mask).tolist() == [[y, x] for y in (1, 2, 3) for x in (1, 2, 3)]
        assert not polygons_to_bitmask([], 6, 7).any()

    def test_bit_masks_boxes_end_after_the_last_pixel(self):
        masks = torch.zeros(2, 6, 7)
        masks[0, 1:4, 2:6] = 1
        masks = BitMasks(masks)
        assert masks.tensor.dtype == torch.bool
        assert masks.image_size == (6, 7)
        assert masks.get_bounding_boxes().tensor.tolist() == [[2, 1, 6, 4], [0, 0, 0, 0]]
        assert masks.nonempty().tolist() == [True, False]

    def test_bit_masks_select_and_join(self):
        masks = BitMasks(np.eye(3, dtype=np.uint8)[:, None])  # three masks of (1, 3)
        assert masks[1].tensor.tolist() == [[[False, True, False]]]
        assert len(masks[torch.tensor([True, False, True])]) == 2
        assert len(BitMasks.cat([masks, masks[0]])) == 4
        assert [tuple(mask.shape) for mask in masks] == [(1, 3)] * 3

    def test_no_bit_masks(self):
        none = BitMasks(torch.zeros(0, 6, 7))
        assert none.get_bounding_boxes().tensor.shape == (0, 4)
        assert none.nonempty().shape == (0,)

    def test_bit_masks_from_polygons(self):
        polygons = PolygonMasks([[SQUARE], []])
        for source in (polygons, polygons.polygons):
            masks = BitMasks.from_polygon_masks(source, 6, 7)
            assert masks.tensor.sum((1, 2)).tolist() == [9, 0]

    def test_polygon_masks_area_and_boxes(self):
        triangle = [0, 0, 4, 0, 0, 3]
        polygons = PolygonMasks([[SQUARE, triangle], [], [triangle]])
        assert polygons.area().tolist() == [15, 0, 6]
        assert polygons.area().dtype == torch.float64
        inf = float("inf")
        assert polygons.get_bounding_boxes().tensor.tolist() == [[0, 0, 4, 4], [inf, inf, 0, 0], [0, 0, 4, 3]]
        assert polygons.nonempty().tolist() == [True, False, True]

    def test_a_polygon_left_of_the_image_ends_at_zero(self):
        polygons = PolygonMasks([[[-4, -4, -2, -4, -2, -2]]])
        assert polygons.get_bounding_boxes().tensor.tolist() == [[-4, -4, 0, 0]]

    @pytest.mark.parametrize("index", [2, slice(2, 3), [2], torch.tensor([2]), torch.tensor([False, False, True])])
    def test_polygon_masks_select(self, index):
        polygons = PolygonMasks([[SQUARE], [], [SQUARE + 1]])
        selected = polygons[index]
        assert len(selected) == 1
        np.testing.assert_array_equal(selected.polygons[0][0], SQUARE + 1)

    def test_polygon_masks_join(self):
        assert len(PolygonMasks.cat([PolygonMasks([[SQUARE], []]), PolygonMasks([[SQUARE]])])) == 3

    @pytest.mark.parametrize("coordinates", [[1, 1, 2, 2], [1, 1, 2, 2, 3, 3, 4]])
    def test_too_few_or_odd_coordinates(self, coordinates):
        with pytest.raises(ValueError, match=f"Cannot create a polygon from {len(coordinates)} coordinates"):
            PolygonMasks([[coordinates]])

    def test_not_a_list_of_lists(self):
        with pytest.raises(ValueError, match="Cannot create PolygonMasks"):
            PolygonMasks(np.zeros((1, 1, 6)))
        with pytest.raises(ValueError, match="Cannot create PolygonMasks"):
            PolygonMasks([np.zeros((4, 4))])


class TestImageList:
    def test_pads_right_and_bottom_up_to_a_multiple(self):
        images = [torch.ones(3, 5, 9), torch.ones(3, 7, 4)]
        batch = ImageList.from_tensors(images, size_divisibility=4, pad_value=2)
        assert batch.tensor.shape == (2, 3, 8, 12)
        assert batch.image_sizes == [(5, 9), (7, 4)]
        assert len(batch) == 2
        for i, image in enumerate(images):
            assert torch.equal(batch[i], image)
            padding = batch.tensor[i].sum() - image.sum()
            assert padding == 2 * (3 * 8 * 12 - image.numel())

    @pytest.mark.parametrize("size_divisibility", [0, 1])
    def test_without_a_multiple_it_pads_to_the_largest(self, size_divisibility):
        batch = ImageList.from_tensors([torch.ones(5, 9), torch.ones(7, 4)], size_divisibility)
        assert batch.tensor.shape == (2, 7, 9)

    def test_it_keeps_uint8(self):
        assert ImageList.from_tensors([torch.ones(1, 2, 2, dtype=torch.uint8)], 4).tensor.dtype == torch.uint8

    def test_a_square(self):
        batch = ImageList.from_tensors([torch.ones(1, 5, 9)], padding_constraints={"square_size": 16})
        assert batch.tensor.shape == (1, 1, 16, 16)

    def test_to(self):
        batch = ImageList.from_tensors([torch.ones(1, 2, 2)]).to("cpu")
        assert batch.device == torch.device("cpu") and batch.image_sizes == [(2, 2)]
