"""Transforms against recorded and hand-worked numbers, and properties that hold for all of them."""

import detectron2.data.transforms as T
import numpy as np
import pytest
from PIL import Image

RNG = np.random.RandomState  # a generator with the same stream as np.random


def image_of(height, width, channels=3):
    return RNG(7).randint(0, 256, (height, width, channels), dtype=np.uint8)


class TestResizeTransform:
    def test_labels_go_two_ways(self):
        # Recorded from upstream: Pillow samples pixel centres, torch rounds down.
        labels = np.arange(10)[None]
        resize = T.ResizeTransform(1, 10, 1, 4)
        assert resize.apply_segmentation(labels.astype(np.uint8)).tolist() == [[1, 3, 6, 8]]
        assert resize.apply_segmentation(labels.astype(np.float64)).tolist() == [[0, 2, 5, 7]]

    def test_uint8_images_are_resized_by_pillow(self):
        image = image_of(9, 14)
        expected = np.asarray(Image.fromarray(image).resize((5, 4), Image.BILINEAR))
        np.testing.assert_array_equal(T.ResizeTransform(9, 14, 4, 5).apply_image(image), expected)

    def test_float_images_are_interpolated_without_smoothing(self):
        row = np.array([[0.0, 1, 2, 3]], dtype=np.float32)
        # Centres of the two new pixels lie at 1 and 3 in the old image, between pixels 0, 1 and 2, 3.
        np.testing.assert_allclose(T.ResizeTransform(1, 4, 1, 2).apply_image(row), [[0.5, 2.5]])

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    @pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3)])
    def test_axes_and_type_stay(self, dtype, shape):
        resized = T.ResizeTransform(6, 8, 3, 5).apply_image(np.ones(shape, dtype=dtype))
        assert resized.shape == (3, 5, *shape[2:]) and resized.dtype == dtype
        assert (resized == 1).all()

    def test_the_bgr_view_is_taken(self):
        image = image_of(6, 8)
        resize = T.ResizeTransform(6, 8, 3, 5)
        np.testing.assert_array_equal(resize.apply_image(image[:, :, ::-1])[..., ::-1], resize.apply_image(image))

    def test_coordinates_scale_by_axis_and_back(self):
        resize = T.ResizeTransform(10, 20, 5, 60)
        assert resize.apply_coords(np.array([[2.0, 4.0]])).tolist() == [[6, 2]]
        assert resize.inverse().apply_coords(np.array([[6.0, 2.0]])).tolist() == [[2, 4]]

    def test_another_size_is_refused(self):
        with pytest.raises(AssertionError):
            T.ResizeTransform(10, 20, 5, 60).apply_image(np.zeros((10, 10, 3), np.uint8))


class TestRotationTransform:
    def test_a_quarter_turn_is_counter_clockwise(self):
        image = image_of(4, 6)
        rotation = T.RotationTransform(4, 6, 90)
        np.testing.assert_array_equal(rotation.apply_image(image), np.rot90(image))
        # The upper left corner (0, 0) becomes the lower left one of the image of 6 x 4.
        np.testing.assert_allclose(rotation.apply_coords(np.array([[0.0, 0], [6, 0]])), [[0, 6], [0, 0]], atol=1e-9)

    def test_half_a_turn_turns_labels(self):
        labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
        np.testing.assert_array_equal(T.RotationTransform(4, 6, 180).apply_segmentation(labels), labels[::-1, ::-1])

    @pytest.mark.parametrize("angle", [0, 360, -720])
    def test_full_turns_change_nothing(self, angle):
        image = image_of(4, 6)
        rotation = T.RotationTransform(4, 6, angle)
        np.testing.assert_array_equal(rotation.apply_image(image), image)
        assert rotation.apply_coords(np.array([[1.0, 2.0]])).tolist() == [[1, 2]]

    def test_expanding_holds_the_whole_image(self):
        rotation = T.RotationTransform(40, 60, 30)
        corners = np.array([[0.0, 0], [60, 0], [60, 40], [0, 40]])
        moved = rotation.apply_coords(corners)
        size = rotation.apply_image(np.zeros((40, 60), np.uint8)).shape
        # 40 cos 30 + 60 sin 30 = 64.64, 40 sin 30 + 60 cos 30 = 71.96
        assert size == (65, 72)
        assert moved.min() > -0.5 and (moved.max(0) < np.array(size[::-1]) + 0.5).all()

    def test_without_expanding_the_size_stays_and_the_centre_too(self):
        rotation = T.RotationTransform(40, 60, 30, expand=False, center=(10, 5))
        assert rotation.apply_image(image_of(40, 60)).shape == (40, 60, 3)
        np.testing.assert_allclose(rotation.apply_coords(np.array([[10.0, 5.0]])), [[10, 5]], atol=1e-9)


class TestFvcoreTransforms:
    def test_flipping_is_about_the_middle_of_continuous_coordinates(self):
        assert T.HFlipTransform(10).apply_coords(np.array([[0.0, 3.0]])).tolist() == [[10, 3]]
        assert T.VFlipTransform(10).apply_coords(np.array([[0.0, 3.0]])).tolist() == [[0, 7]]

    def test_a_crop_clips_polygons(self):
        square = np.array([[0.0, 0], [20, 0], [20, 20], [0, 20]])
        (clipped,) = T.CropTransform(10, 10, 20, 20).apply_polygons([square])
        assert {tuple(point) for point in clipped} == {(10, 10), (10, 0), (0, 0), (0, 10)}
        assert T.CropTransform(30, 30, 5, 5).apply_polygons([square]) == []

    def test_blending_truncates(self):
        image = np.array([[101]], dtype=np.uint8)
        assert T.BlendTransform(0, 0.5, 0.5).apply_image(image).tolist() == [[50]]

    def test_lists_are_flat_and_add_up(self):
        flip = T.HFlipTransform(4)
        both = T.TransformList([T.TransformList([flip, flip]), T.NoOpTransform()]) + T.TransformList([flip])
        assert len(both) == 4 and both[0] is flip


TRANSFORMS = [
    T.HFlipTransform(12),
    T.VFlipTransform(8),
    T.ResizeTransform(8, 12, 16, 36),
    T.RotationTransform(8, 12, 90),
    T.RotationTransform(8, 12, 33),
    T.CropTransform(0, 0, 12, 8),
    T.PadTransform(2, 3, 4, 5),
    T.ExtentTransform((-3, -4, 15, 12), (32, 36)),
    T.TransformList([T.HFlipTransform(12), T.ResizeTransform(8, 12, 4, 6)]),
]


class TestProperties:
    @pytest.mark.parametrize("flip", [T.HFlipTransform(12), T.VFlipTransform(8)], ids=repr)
    def test_flipping_twice_is_nothing(self, flip):
        image, points = image_of(8, 12), RNG(3).rand(5, 2) * 8
        np.testing.assert_array_equal(flip.apply_image(flip.apply_image(image)), image)
        np.testing.assert_allclose(flip.apply_coords(flip.apply_coords(points.copy())), points)

    @pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
    def test_the_box_of_a_rectangle_is_the_box_of_its_polygon(self, transform):
        x0, y0, x1, y1 = 2.0, 1.0, 7.0, 5.0
        rectangle = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        (polygon,) = transform.apply_polygons([rectangle.copy()])
        box = transform.apply_box(np.array([[x0, y0, x1, y1]]))[0]
        np.testing.assert_allclose(box, [*polygon.min(0), *polygon.max(0)], atol=1e-6)

    @pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
    def test_a_mask_goes_where_its_box_goes(self, transform):
        mask = np.zeros((8, 12), np.uint8)
        mask[1:5, 2:7] = 1
        moved = transform.apply_segmentation(mask)
        ys, xs = np.nonzero(moved)
        box = transform.apply_box(np.array([[2.0, 1, 7, 5]]))[0]
        tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(tight, box, atol=1)

    @pytest.mark.parametrize("transform", [T.ResizeTransform(8, 12, 16, 36), T.HFlipTransform(12)], ids=repr)
    def test_the_inverse_brings_points_back(self, transform):
        points = RNG(3).rand(5, 2) * 8
        moved = transform.apply_coords(points.copy())
        np.testing.assert_allclose(transform.inverse().apply_coords(moved.copy()), points)


class TestFramework:
    def test_argument_names_choose_what_get_transform_sees(self):
        seen = []

        class Watch(T.Augmentation):
            def get_transform(self, image, sem_seg):
                seen.append((image.shape, sem_seg.shape))
                return T.NoOpTransform()

        Watch()(T.AugInput(image_of(4, 6), sem_seg=np.zeros((4, 6))))
        assert seen == [((4, 6, 3), (4, 6))]

    def test_a_single_argument_is_the_image_whatever_its_name(self):
        class Watch(T.TransformGen):
            def get_transform(self, img):
                return T.HFlipTransform(img.shape[1])

        image, done = T.apply_transform_gens([Watch()], image_of(4, 6))
        np.testing.assert_array_equal(image, image_of(4, 6)[:, ::-1])
        assert isinstance(done, T.TransformList) and len(done) == 1

    def test_input_args_name_the_attributes(self):
        class Watch(T.Augmentation):
            input_args = ("boxes",)

            def get_transform(self, anything):
                assert anything.shape == (1, 4)
                return T.NoOpTransform()

        Watch()(T.AugInput(image_of(4, 6), boxes=np.zeros((1, 4))))

    def test_a_missing_attribute_is_named(self):
        class Watch(T.Augmentation):
            def get_transform(self, image, depth):
                return T.NoOpTransform()

        with pytest.raises(AttributeError, match="depth"):
            Watch()(T.AugInput(image_of(4, 6)))

    def test_only_transforms_may_come_back(self):
        class Wrong(T.Augmentation):
            def get_transform(self, image):
                return image

        with pytest.raises(AssertionError):
            Wrong()(T.AugInput(image_of(4, 6)))

    def test_everything_in_the_input_moves(self):
        labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
        given = T.StandardAugInput(image_of(4, 6), boxes=np.array([[0.0, 0, 2, 1]]), sem_seg=labels)
        result, done = T.apply_augmentations([T.RandomFlip(prob=1.0), T.Resize((8, 12))], given)
        assert result is given
        assert given.image.shape == (8, 12, 3) and given.sem_seg.shape == (8, 12)
        assert given.boxes.tolist() == [[8, 0, 12, 2]]
        assert [type(step).__name__ for step in done.transforms] == ["HFlipTransform", "ResizeTransform"]

    def test_lists_take_transforms_too(self):
        done = T.AugmentationList([T.HFlipTransform(6), T.RandomFlip(prob=0.0)])(T.AugInput(image_of(4, 6)))
        assert [type(step).__name__ for step in done.transforms] == ["HFlipTransform", "NoOpTransform"]

    def test_an_image_is_an_array_of_two_or_three_axes(self):
        for wrong in ([[1, 2]], np.zeros((1, 2, 2, 3))):
            with pytest.raises(AssertionError):
                T.AugInput(wrong)

    def test_repr_leaves_out_defaults(self):
        shown = repr(T.ResizeScale(min_scale=0.1, max_scale=2.0, target_height=64, target_width=64))
        assert shown == "ResizeScale(min_scale=0.1, max_scale=2.0, target_height=64, target_width=64)"


class TestResizing:
    @pytest.mark.parametrize(
        ("size", "expected"), [((480, 640), (800, 1067)), ((427, 640), (800, 1199)), ((375, 1242), (402, 1333))]
    )
    def test_output_sizes_of_shortest_edge(self, size, expected):
        assert T.ResizeShortestEdge.get_output_shape(*size, 800, 1333) == expected

    def test_shortest_edge_draws_from_the_range_with_both_ends(self):
        aug, reference = T.ResizeShortestEdge((10, 12)), RNG(5)
        np.random.seed(5)
        for _ in range(8):
            transform = aug.get_transform(image_of(10, 20))
            length = reference.randint(10, 13)
            assert (transform.new_h, transform.new_w) == (length, 2 * length)

    def test_shortest_edge_draws_from_choices(self):
        aug, reference = T.ResizeShortestEdge((10, 14, 18), sample_style="choice"), RNG(5)
        np.random.seed(5)
        for _ in range(8):
            assert aug.get_transform(image_of(10, 20)).new_h == reference.choice((10, 14, 18))

    def test_shortest_edge_zero_means_leave(self):
        assert isinstance(T.ResizeShortestEdge(0).get_transform(image_of(4, 6)), T.NoOpTransform)

    def test_shortest_edge_refuses_another_style(self):
        with pytest.raises(AssertionError):
            T.ResizeShortestEdge(10, sample_style="other")

    def test_scale_jitter_fits_into_the_scaled_target(self):
        aug, reference = T.ResizeScale(0.1, 2.0, 64, 48), RNG(5)
        np.random.seed(5)
        for _ in range(8):
            transform = aug.get_transform(image_of(30, 50))
            factor = reference.uniform(0.1, 2.0)
            scale = min(64 * factor / 30, 48 * factor / 50)
            assert (transform.new_h, transform.new_w) == (np.round(30 * scale), np.round(50 * scale))

    def test_scale_jitter_rounds_half_to_even(self):
        transform = T.ResizeScale(1.0, 1.0, 5, 100).get_transform(np.zeros((2, 1, 3), np.uint8))
        assert (transform.new_h, transform.new_w) == (5, 2)  # scale 2.5: 1 * 2.5 = 2.5 -> 2

    def test_resize_takes_a_side(self):
        assert T.apply_augmentations([T.Resize(5)], image_of(4, 6))[0].shape == (5, 5, 3)


class TestFlip:
    def test_it_flips_below_the_probability(self):
        aug, reference = T.RandomFlip(prob=0.3), RNG(5)
        np.random.seed(5)
        for _ in range(20):
            flipped = isinstance(aug.get_transform(image_of(4, 6)), T.HFlipTransform)
            assert flipped == (reference.uniform() < 0.3)

    def test_vertical(self):
        aug = T.RandomFlip(prob=1.0, horizontal=False, vertical=True)
        assert isinstance(aug.get_transform(image_of(4, 6)), T.VFlipTransform)

    @pytest.mark.parametrize("both", [True, False])
    def test_one_direction_exactly(self, both):
        with pytest.raises(ValueError):
            T.RandomFlip(horizontal=both, vertical=both)


class TestCrop:
    def test_fixed_size_crop_uses_one_number_for_both_axes(self):
        np.random.seed(5)
        transform = T.FixedSizeCrop((10, 10)).get_transform(image_of(30, 50))
        share = RNG(5).uniform(0.0, 1.0)
        crop, pad = transform.transforms
        assert (crop.y0, crop.x0, crop.h, crop.w) == (np.round(20 * share), np.round(40 * share), 10, 10)
        assert (pad.x0, pad.y0, pad.x1, pad.y1) == (0, 0, 0, 0)

    def test_fixed_size_crop_fills_up_right_and_bottom(self):
        labels = np.ones((4, 6), np.uint8)
        given = T.AugInput(np.ones((4, 6, 3), np.uint8), sem_seg=labels)
        T.FixedSizeCrop((8, 5))(given)
        assert given.image.shape == (8, 5, 3) and given.sem_seg.shape == (8, 5)
        assert (given.image[:4] == 1).all() and (given.image[4:] == 128).all()
        assert (given.sem_seg[:4] == 1).all() and (given.sem_seg[4:] == 255).all()

    def test_fixed_size_crop_without_filling_up(self):
        image, _ = T.apply_augmentations([T.FixedSizeCrop((8, 5), pad=False)], image_of(4, 6))
        assert image.shape == (4, 5, 3)

    def test_random_crop_draws_top_then_left(self):
        aug, reference = T.RandomCrop("absolute", (4, 12)), RNG(5)
        np.random.seed(5)
        for _ in range(5):
            crop = aug.get_transform(image_of(10, 20))
            assert crop.y0 == reference.randint(7) and crop.x0 == reference.randint(9)
            assert (crop.h, crop.w) == (4, 12)

    def test_random_crop_sizes(self):
        assert T.RandomCrop("relative", (0.5, 0.33)).get_crop_size((11, 10)) == (6, 3)
        assert T.RandomCrop("absolute", (4, 100)).get_crop_size((10, 20)) == (4, 20)
        np.random.seed(5)
        reference = RNG(5)
        shares = 0.5 + reference.rand(2) * 0.5
        expected = tuple(int(100 * share + 0.5) for share in shares)
        assert tuple(T.RandomCrop("relative_range", (0.5, 0.5)).get_crop_size((100, 100))) == expected
        expected = (reference.randint(3, 10 + 1), reference.randint(3, 8 + 1))
        assert tuple(T.RandomCrop("absolute_range", (3, 10)).get_crop_size((20, 8))) == expected

    def test_random_crop_refuses_another_type(self):
        with pytest.raises(AssertionError):
            T.RandomCrop("other", (1, 1))

    def test_category_constraint_avoids_windows_of_one_category(self):
        labels = np.zeros((1, 40), np.uint8)
        labels[:, 18:20] = 1  # a window of 4 with both needs to start at 15..19
        given = T.AugInput(np.zeros((1, 40, 3), np.uint8), sem_seg=labels)
        aug = T.RandomCrop_CategoryAreaConstraint("absolute", (1, 4), single_category_max_area=0.8)
        reference = RNG(5)
        np.random.seed(5)
        for _ in range(10):
            crop = aug.get_transform(given.image, given.sem_seg)
            for _ in range(10):  # each try draws top and left
                reference.randint(1)
                left = reference.randint(37)
                if 15 <= left <= 19:
                    break
            assert crop.x0 == left

    def test_category_constraint_ignores_a_label(self):
        labels = np.tile(np.array([0, 255], np.uint8), (5, 4))  # (5, 8): half of every window is 255
        aug = T.RandomCrop_CategoryAreaConstraint("absolute", (2, 4), 0.9, ignored_category=255)
        np.random.seed(5)
        aug.get_transform(np.zeros((5, 8, 3), np.uint8), labels)
        reference = RNG(5)
        for _ in range(10):  # never accepted: ten tries of two draws
            reference.randint(4)
            reference.randint(5)
        assert np.random.rand() == reference.rand()

    def test_without_a_limit_labels_are_not_needed(self):
        aug = T.RandomCrop_CategoryAreaConstraint("absolute", (2, 2))
        assert isinstance(aug.get_transform(image_of(4, 6), None), T.CropTransform)

    def test_min_iou_crop_holds_the_centre_of_a_box(self):
        boxes = np.array([[10.0, 10, 30, 30], [40, 5, 50, 20]])
        for _ in range(20):
            transform = T.MinIoURandomCrop().get_transform(image_of(40, 60), boxes)
            if isinstance(transform, T.CropTransform):
                centers = (boxes[:, :2] + boxes[:, 2:]) / 2 - (transform.x0, transform.y0)
                assert ((centers > 0) & (centers < (transform.w, transform.h))).all(1).any()


class TestColourAndRest:
    def test_brightness_contrast_saturation(self):
        image = np.array([[[100, 100, 100], [200, 0, 0]]], np.uint8)
        halve = {"intensity_min": 0.5, "intensity_max": 0.5}
        brightness = T.RandomBrightness(**halve).get_transform(image).apply_image(image)
        assert brightness.tolist() == [[[50, 50, 50], [100, 0, 0]]]
        contrast = T.RandomContrast(**halve).get_transform(image).apply_image(image)  # mean 500 / 6 = 83.3
        assert contrast.tolist() == [[[91, 91, 91], [141, 41, 41]]]
        saturation = T.RandomSaturation(**halve).get_transform(image).apply_image(image)  # grey of red: 59.8
        assert saturation[0, 1].tolist() == [129, 29, 29]

    def test_lighting_without_scale_changes_nothing(self):
        image = image_of(4, 6)
        np.testing.assert_array_equal(T.RandomLighting(0.0).get_transform(image).apply_image(image), image)

    def test_color_transform_leaves_labels_and_points(self):
        darken = T.ColorTransform(lambda image: image // 2)
        assert darken.apply_image(np.array([[8]])).tolist() == [[4]]
        assert darken.apply_segmentation(np.array([[8]])).tolist() == [[8]]
        assert darken.apply_coords(np.array([[8, 9]])).tolist() == [[8, 9]]
        invert = T.PILColorTransform(lambda image: image.point(lambda value: 255 - value))
        assert invert.apply_image(np.array([[8]], np.uint8)).tolist() == [[247]]

    def test_random_apply(self):
        flip = T.HFlipTransform(6)
        always = T.RandomApply(flip, prob=1.0)(T.AugInput(image_of(4, 6)))
        never = T.RandomApply(flip, prob=0.0)(T.AugInput(image_of(4, 6)))
        assert isinstance(always, T.HFlipTransform) and isinstance(never, T.NoOpTransform)

    def test_random_rotation_draws_its_angle(self):
        np.random.seed(5)
        rotation = T.RandomRotation([-30, 30], expand=False).get_transform(image_of(4, 6))
        assert rotation.angle == RNG(5).uniform(-30, 30)

    def test_random_extent_without_range_is_the_image(self):
        image = image_of(4, 6)
        extent = T.RandomExtent((1.0, 1.0), (0.0, 0.0)).get_transform(image)
        np.testing.assert_array_equal(extent.apply_image(image), image)

    def test_random_resize_chooses_a_size(self):
        image, _ = T.apply_augmentations([T.RandomResize([(3, 5)])], image_of(4, 6))
        assert image.shape == (3, 5, 3)
