"""Pictures: the right pixels change, in the right colour, and labels stand where their object is."""

from types import SimpleNamespace

import detectron2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.colormap import colormap, random_color, random_colors
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer, _create_text_labels

# Upstream draws with matplotlib, which blends and places text in its own way.
embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="pixels of our own drawing")

METADATA = SimpleNamespace(
    thing_classes=["cat", "dog"],
    thing_colors=[(200, 0, 0), (0, 200, 0)],
    stuff_classes=["cat", "dog", "sky"],
    stuff_colors=[(200, 0, 0), (0, 200, 0), (0, 0, 200)],
    thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
)
GRAY = np.full((200, 300, 3), 100, np.uint8)


def rectangle(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = (200, 300)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def instances(masks: list[np.ndarray], classes: list[int], scores: list[float], **fields: object) -> Instances:
    result = Instances((200, 300))
    result.pred_masks = torch.as_tensor(np.stack(masks))
    result.pred_classes = torch.tensor(classes)
    result.scores = torch.tensor(scores)
    for name, value in fields.items():
        result.set(name, value)
    return result


def changed(visualizer: Visualizer, before: np.ndarray = GRAY) -> np.ndarray:
    return (visualizer.get_output().get_image() != before).any(-1)


def dark_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels as dark as the box of a label is over a grey of 100."""
    rows, columns = np.nonzero(image.max(-1) < 60)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@embedded_only
def test_inside_a_mask_is_the_blend_and_outside_is_untouched():
    visualizer = Visualizer(GRAY)
    visualizer.draw_binary_mask(rectangle(50, 40, 150, 120), color=(1.0, 0.5, 0.0), alpha=0.4)
    image = visualizer.get_output().get_image()
    # 0.6 * 100 + 0.4 * (255, 127.5, 0)
    assert np.abs(image[45:115, 55:145].astype(int) - (162, 111, 60)).max() <= 1
    image[38:122, 48:152] = 100
    assert (image == GRAY).all()


@embedded_only
def test_a_hole_stays_open():
    mask = rectangle(50, 40, 150, 120) & ~rectangle(80, 60, 120, 100)
    visualizer = Visualizer(GRAY)
    visualizer.draw_binary_mask(mask, color="red")
    assert (visualizer.get_output().get_image()[63:97, 83:117] == 100).all()
    assert GenericMask(mask.astype(np.uint8), 200, 300).has_holes


@embedded_only
def test_parts_smaller_than_the_threshold_are_left_out():
    mask = rectangle(50, 40, 150, 120) | rectangle(10, 10, 15, 15)
    assert not changed_by_mask(mask, 26)[5:20, 5:20].any()
    assert changed_by_mask(mask, 25)[11:14, 11:14].all()


def changed_by_mask(mask: np.ndarray, area_threshold: int) -> np.ndarray:
    visualizer = Visualizer(GRAY)
    visualizer.draw_binary_mask(mask, color="red", area_threshold=area_threshold)
    return changed(visualizer)


@embedded_only
@pytest.mark.parametrize("form", ["bool", "uint8", "uint8 255", "float", "numpy", "BitMasks", "polygons", "rle"])
def test_masks_in_every_form_give_the_same_picture(form):
    mask = rectangle(50, 40, 150, 120)
    tensor = torch.as_tensor(mask)[None]
    outline = [50.0, 40.0, 150.0, 40.0, 150.0, 120.0, 50.0, 120.0]
    masks = {
        "bool": tensor,
        "uint8": tensor.to(torch.uint8),
        "uint8 255": tensor.to(torch.uint8) * 255,
        "float": tensor.float(),
        "numpy": mask[None],
        "BitMasks": BitMasks(tensor),
        "polygons": PolygonMasks([[np.array(outline)]]),
        "rle": [mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))],
    }[form]
    expected = Visualizer(GRAY).overlay_instances(masks=tensor, labels=["x"], assigned_colors=[(1, 0, 0)]).get_image()
    image = Visualizer(GRAY).overlay_instances(masks=masks, labels=["x"], assigned_colors=[(1, 0, 0)]).get_image()
    assert (image == expected).all()


@embedded_only
def test_zero_boxes_are_replaced_and_labels_stand_at_the_masks():
    masks = [rectangle(20, 20, 120, 90), rectangle(180, 110, 280, 180)]
    predicted = instances(masks, [0, 1], [0.9, 0.8], pred_boxes=Boxes(torch.zeros(2, 4)))
    visualizer = Visualizer(GRAY, METADATA)
    image = visualizer.draw_instance_predictions(predicted).get_image()
    for mask, (x, y) in zip(masks, [(70, 55), (230, 145)]):
        x0, y0, x1, y1 = dark_box(np.where(mask[..., None], image, 100))
        assert abs((x0 + x1) / 2 - x) < 20 and abs((y0 + y1) / 2 - y) < 12
    assert not changed(visualizer)[:15, :15].any()


@embedded_only
def test_the_box_around_a_mask_is_drawn_where_the_model_gives_none():
    mask = rectangle(20, 20, 120, 40) | rectangle(20, 20, 40, 120)  # leaves the lower right corner of its box free
    visualizer = Visualizer(GRAY, METADATA)
    visualizer.draw_instance_predictions(instances([mask], [0], [0.9], pred_boxes=Boxes(torch.zeros(1, 4))))
    difference = changed(visualizer)
    assert difference[60:115, 118:122].any(1).all() and not difference[60:115, 60:115].any()


@embedded_only
def test_the_label_of_a_mask_in_two_parts_stands_in_the_larger_one():
    mask = rectangle(10, 10, 60, 60) | rectangle(150, 80, 290, 190)
    image = Visualizer(GRAY).overlay_instances(masks=[mask], labels=["thing"], assigned_colors=["red"]).get_image()
    x0, y0, x1, y1 = dark_box(image)
    assert 150 < x0 < x1 < 290 and 80 < y0 < y1 < 190


@embedded_only
def test_the_label_of_a_tiny_object_leaves_it_visible_and_labels_do_not_cover_each_other():
    masks = [rectangle(140, 100, 150, 110), rectangle(152, 100, 162, 110)]
    visualizer = Visualizer(GRAY)
    visualizer.overlay_instances(masks=masks, labels=["first", "second"], assigned_colors=["red", "red"], alpha=1)
    image = visualizer.get_output().get_image()
    for mask in masks:
        assert (image[mask][:, 0] == 255).all()
    (a, b) = visualizer.output.labels
    assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@embedded_only
@pytest.mark.parametrize("corner", [(0, 0), (294, 0), (0, 194), (294, 194)])
def test_labels_stay_within_the_image(corner):
    mask = rectangle(corner[0], corner[1], corner[0] + 6, corner[1] + 6)
    visualizer = Visualizer(GRAY)
    visualizer.overlay_instances(masks=[mask], labels=["a longer name"], assigned_colors=["red"])
    ((x0, y0, x1, y1),) = visualizer.output.labels
    assert x0 >= 0 and y0 >= 0 and x1 <= 300 and y1 <= 200


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 2), (9, 9)])
def test_tiny_images_can_be_drawn_on(size):
    image = np.zeros((*size, 3), np.uint8)
    predicted = Instances(size, pred_masks=torch.ones(1, *size), pred_classes=torch.tensor([0]), scores=torch.ones(1))
    assert Visualizer(image, METADATA).draw_instance_predictions(predicted).get_image().shape == image.shape


def test_nothing_predicted_leaves_the_image_as_it_is():
    empty = Instances((200, 300), pred_masks=torch.zeros(0, 200, 300), pred_classes=torch.zeros(0, dtype=torch.int64))
    empty.scores, empty.pred_boxes = torch.zeros(0), Boxes(torch.zeros(0, 4))
    visualizer = Visualizer(GRAY, METADATA)
    assert visualizer.draw_instance_predictions(empty).get_image().shape == GRAY.shape
    assert not changed(visualizer).any()


@embedded_only
def test_the_first_object_of_a_class_has_its_colour_and_others_a_shade_that_never_changes():
    masks = [rectangle(10, 10, 60, 60), rectangle(80, 10, 130, 60), rectangle(150, 10, 200, 60)]
    predicted = instances(masks, [1, 1, 0], [0.9, 0.9, 0.9])
    predicted.remove("scores")
    predicted.pred_classes = torch.tensor([1, 1, 0])
    draws = [
        Visualizer(GRAY, METADATA, instance_mode=ColorMode.SEGMENTATION)
        .draw_instance_predictions(predicted)
        .get_image()
        for _ in range(2)
    ]
    assert (draws[0] == draws[1]).all()
    first, second, other = (draws[0][15, x].astype(int) for x in (15, 85, 155))
    assert np.abs(first - (20, 180, 20)).max() <= 1  # 0.2 * 100 + 0.8 * (0, 200, 0)
    assert np.abs(other - (180, 20, 20)).max() <= 1
    assert np.abs(first - second).max() > 10 and second[1] > second[0] and second[1] > second[2]


@embedded_only
def test_black_and_white_mode_keeps_colour_only_inside_the_masks():
    image = np.zeros((200, 300, 3), np.uint8)
    image[..., 0] = 200
    predicted = instances([rectangle(50, 40, 150, 120)], [0], [0.9])
    drawn = (
        Visualizer(image, METADATA, instance_mode=ColorMode.IMAGE_BW).draw_instance_predictions(predicted).get_image()
    )
    outside = drawn[150:, 200:]
    assert (outside == outside[..., :1]).all() and abs(int(outside[0, 0, 0]) - 60) <= 1  # 0.299 * 200
    assert drawn[45, 55, 0] == 200 and drawn[45, 55, 1] == 0


@embedded_only
def test_semantic_labels_have_the_colours_of_the_metadata_and_the_rest_stays():
    labels = np.full((200, 300), 255)
    labels[:, :100], labels[:, 100:200] = 2, 0
    image = Visualizer(GRAY, METADATA).draw_sem_seg(torch.as_tensor(labels), alpha=0.8).get_image()
    assert np.abs(image[5, 50].astype(int) - (20, 20, 180)).max() <= 1
    assert np.abs(image[5, 150].astype(int) - (180, 20, 20)).max() <= 1
    assert (image[:, 203:] == 100).all()


@embedded_only
def test_panoptic_things_are_drawn_with_score_and_void_stays():
    ids = np.zeros((200, 300), np.int32)
    ids[:, :150] = 1
    ids[50:150, 20:120] = 2
    infos = [
        {"id": 1, "isthing": False, "category_id": 2},
        {"id": 2, "isthing": True, "category_id": 0, "score": 0.87},
    ]
    visualizer = Visualizer(GRAY, METADATA)
    image = visualizer.draw_panoptic_seg(torch.as_tensor(ids), infos, alpha=0.7).get_image()
    assert np.abs(image[10, 10].astype(int) - (30, 30, 170)).max() <= 1
    assert np.abs(image[60, 30].astype(int) - (170, 30, 30)).max() <= 1
    assert (image[:, 153:] == 100).all()
    same = Visualizer(GRAY, METADATA).draw_panoptic_seg_predictions(torch.as_tensor(ids), infos, alpha=0.7).get_image()
    assert (image == same).all()


def test_panoptic_ids_are_decoded_when_no_segments_are_given():
    metadata = SimpleNamespace(**vars(METADATA), label_divisor=1000)
    ids = np.full((200, 300), -1)
    ids[:, :100], ids[:, 100:200] = 2000, 1001
    visualizer = Visualizer(GRAY, metadata)
    visualizer.draw_panoptic_seg(torch.as_tensor(ids), None)
    assert changed(visualizer)[10:20, 10:90].all() and not changed(visualizer)[:, 205:].any()


@embedded_only
def test_numbers_beyond_the_things_are_named_by_all_classes_and_else_stay_numbers(monkeypatch):
    # As ADE20K has it: things numbered among all classes, and fewer names of things.
    among_all = SimpleNamespace(
        thing_classes=["bed", "car"],
        stuff_classes=["wall", "bed", "sky", "car"],
        thing_dataset_id_to_contiguous_id={8: 1, 21: 3},
    )
    texts = drawn_texts(monkeypatch)
    predicted = instances([rectangle(i * 70, 20, i * 70 + 60, 80) for i in range(4)], [1, 3, 0, 9], [0.5] * 4)
    Visualizer(GRAY, among_all).draw_instance_predictions(predicted)
    assert sorted(texts) == ["9 50%", "bed 50%", "car 50%", "wall 50%"]
    texts.clear()
    predicted.pred_classes = torch.tensor([1, 2, 0, 9])
    Visualizer(GRAY, METADATA).draw_instance_predictions(predicted)
    assert sorted(texts) == ["9 50%", "cat 50%", "dog 50%", "sky 50%"]


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from detectron2.utils import _canvas

    texts: list[str] = []
    draw = _canvas.fitting_text
    monkeypatch.setattr(_canvas, "fitting_text", lambda text, *rest: texts.append(text) or draw(text, *rest))
    return texts


@embedded_only
def test_the_ground_truth_of_a_dataset_dict_is_drawn():
    annotation = {
        "bbox": [50, 40, 100, 80],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "segmentation": [[50, 40, 150, 40, 150, 120, 50, 120]],
    }
    visualizer = Visualizer(GRAY, METADATA)
    visualizer.draw_dataset_dict({"annotations": [annotation]})
    assert (visualizer.get_output().get_image()[45, 55] == (50, 150, 50)).all()
    assert not changed(visualizer)[:37].any()


def test_scale_enlarges_the_picture():
    picture = Visualizer(GRAY, scale=1.5).get_output()
    assert isinstance(picture, VisImage) and picture.get_image().shape == (300, 450, 3)
    assert (picture.height, picture.width) == (200, 300)


@embedded_only
def test_with_scale_masks_still_cover_their_object():
    visualizer = Visualizer(GRAY, scale=2)
    visualizer.draw_binary_mask(rectangle(50, 40, 150, 120), color="red", alpha=1)
    image = visualizer.get_output().get_image()
    assert (image[83:237, 103:297] == (255, 0, 0)).all() and (image[:76] == 100).all() and (image[:, 306:] == 100).all()


@embedded_only
def test_assigning_the_image_of_the_output_starts_afresh():
    visualizer = Visualizer(GRAY)
    visualizer.draw_box((10, 10, 50, 50), edge_color="r")
    visualizer.output.img = visualizer._create_grayscale_image()
    assert not changed(visualizer).any()


def test_primitives_draw_where_they_are_told():
    steps = {
        "text": lambda v: v.draw_text("hello", (150, 100), color="w"),
        "box": lambda v: v.draw_box((120, 80, 180, 120), edge_color="r", line_style="--"),
        "rotated": lambda v: v.draw_rotated_box_with_label((150, 100, 40, 20, 30), label="r"),
        "circle": lambda v: v.draw_circle((150, 100), color=(0, 0, 1), radius=5),
        "line": lambda v: v.draw_line([130, 170], [90, 110], color="g"),
        "polygon": lambda v: v.draw_polygon(np.array([[130, 80], [170, 80], [150, 120]]), color="b"),
        "soft": lambda v: v.draw_soft_mask(rectangle(120, 80, 180, 120).astype(np.float32), color="b"),
    }
    for name, step in steps.items():
        visualizer = Visualizer(GRAY)
        step(visualizer)
        difference = changed(visualizer)
        assert difference[70:140, 100:200].any(), name
        difference[50:150, 90:210] = False
        assert not difference.any(), name


def test_text_labels():
    assert _create_text_labels([0, 1], [0.5, 0.876], ["cat", "dog"]) == ["cat 50%", "dog 88%"]
    assert _create_text_labels([0, 1], None, ["cat", "dog"], [0, 1]) == ["cat", "dog|crowd"]
    assert _create_text_labels([3], None, None) == ["3"]
    assert _create_text_labels(None, torch.tensor([0.25]), ["cat"]) == ["25%"]
    assert _create_text_labels(None, None, ["cat"]) is None


def test_generic_mask_knows_area_box_and_outline():
    mask = GenericMask(rectangle(50, 40, 150, 120).astype(np.uint8), 200, 300)
    assert mask.area() == 8000 and mask.bbox().tolist() == [50, 40, 150, 120] and not mask.has_holes
    assert len(mask.polygons) == 1
    again = GenericMask([[50, 40, 150, 40, 150, 120, 50, 120]], 200, 300)
    assert (again.mask == mask.mask).all()


@embedded_only
def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(10, 10\).*\(200, 300\)"):
        Visualizer(GRAY).draw_binary_mask(np.zeros((10, 10), bool))
    with pytest.raises(ValueError, match="masks"):
        Visualizer(GRAY).overlay_instances(masks=[rectangle(0, 0, 5, 5)], labels=["a", "b"])
    with pytest.raises(ValueError, match="height, width, 3"):
        Visualizer(np.zeros((5, 5)))


def test_the_palette_has_74_colours_and_orders():
    assert colormap().shape == (74, 3) and colormap().max() <= 255 and colormap(rgb=True, maximum=1).max() <= 1
    assert (colormap(rgb=True) == colormap()[:, ::-1]).all()
    assert len({tuple(c) for c in colormap().tolist()}) == 74
    assert random_color(rgb=True, maximum=1).tolist() in colormap(rgb=True, maximum=1).tolist()
    assert len({tuple(c) for c in random_colors(74)}) == 74


def test_pictures_can_be_saved(tmp_path):
    from PIL import Image

    Visualizer(GRAY).get_output().save(str(tmp_path / "picture.png"))
    assert np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).shape == (200, 300, 3)
