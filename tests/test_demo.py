"""demo/demo.py on pictures and videos, with a model whose answers are known: bright red and bright blue are objects."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import detectron2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor

# Where a test looks at what is drawn: two drawings of the same there differ.
embedded_only = pytest.mark.skipif(
    not getattr(detectron2, "EMBEDDED", False), reason="upstream draws objects in colours that it draws at random"
)

DEMO = Path(__file__).parent.parent / "demo"
sys.path.insert(0, str(DEMO))

import media  # noqa: E402
from predictor import VisualizationDemo  # noqa: E402

import demo  # noqa: E402

SCORES = (0.95, 0.4)  # of red and of blue objects
MetadataCatalog.get("demo_stub").set(
    thing_classes=["red", "blue"],
    thing_colors=[(0, 200, 0), (200, 200, 0)],
    stuff_classes=["red", "blue", "ground"],
    stuff_colors=[(0, 200, 0), (200, 200, 0), (90, 60, 90)],
    thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
)


@META_ARCH_REGISTRY.register()
class StubSegmenter(torch.nn.Module):
    """Takes RGB, as INPUT.FORMAT says; answers in the format of MaskFormer what its switches ask for."""

    def __init__(self, cfg) -> None:
        super().__init__()
        self.test = cfg.MODEL.MASK_FORMER.TEST

    def forward(self, batch: list[dict]) -> list[dict]:
        return [self.answer(item["image"], (item["height"], item["width"])) for item in batch]

    def answer(self, image: Tensor, size: tuple[int, int]) -> dict:
        image = torch.nn.functional.interpolate(image[None], size, mode="nearest")[0]
        masks = torch.stack([(image[0] > 200) & (image[2] < 60), (image[2] > 200) & (image[0] < 60)])
        answer: dict = {}
        if self.test.SEMANTIC_ON:
            answer["sem_seg"] = torch.cat([masks, ~masks.any(0, keepdim=True)]).float()
        if self.test.INSTANCE_ON:
            found = Instances(size, pred_masks=masks.float(), pred_boxes=Boxes(torch.zeros(2, 4)))
            found.scores, found.pred_classes = torch.tensor(SCORES), torch.tensor([0, 1])
            answer["instances"] = found[masks.flatten(1).any(1)]
        if self.test.PANOPTIC_ON:
            ids = torch.ones(size, dtype=torch.int32)
            segments: list[dict] = [{"id": 1, "isthing": False, "category_id": 2}]
            for i, mask in enumerate(masks):
                if mask.any() and SCORES[i] > self.test.OBJECT_MASK_THRESHOLD:
                    ids[mask] = i + 2
                    segments.append({"id": i + 2, "isthing": True, "category_id": i, "score": SCORES[i]})
            answer["panoptic_seg"] = ids, segments
        return answer


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "stub.yaml"
    path.write_text(
        "MODEL:\n  META_ARCHITECTURE: StubSegmenter\n  DEVICE: cpu\n"
        "  MASK_FORMER:\n    TEST: {SEMANTIC_ON: True, INSTANCE_ON: True, PANOPTIC_ON: True}\n"
        "INPUT: {FORMAT: RGB, MIN_SIZE_TEST: 0}\nDATASETS: {TEST: [demo_stub], TRAIN: [demo_stub]}\n"
    )
    return str(path)


def scene(red: tuple[int, int] = (40, 40), blue: tuple[int, int] = (280, 140), size=(301, 451)) -> np.ndarray:
    """RGB: a red and a blue square of 120 pixels on grey."""
    image = np.full((*size, 3), 120, np.uint8)
    image[red[1] : red[1] + 120, red[0] : red[0] + 120] = (255, 0, 0)
    image[blue[1] : blue[1] + 120, blue[0] : blue[0] + 120] = (0, 0, 255)
    return image


def save(path: Path, image: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene() if image is None else image).save(path)
    return path


def run(config: str, *arguments: object) -> int:
    return demo.main(["--config-file", config, *map(str, arguments)])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@embedded_only
def test_a_picture_is_written_with_the_objects_in_their_colours(config, tmp_path):
    source = save(tmp_path / "in.png")
    assert run(config, "--input", source, "--output", tmp_path / "out", "--task", "panoptic") == 0
    assert files(tmp_path / "out") == ["in.png"]
    drawn = pixels(tmp_path / "out" / "in.png")
    assert drawn.shape == (301, 451, 3)
    assert drawn[50, 50, 1] > 120 and drawn[50, 50, 2] < 30  # red turned green, the colour of its class
    assert drawn[150, 290, 0] > 120 and drawn[150, 290, 1] > 120


def test_one_input_can_be_written_to_a_file_and_small_images_are_enlarged(config, tmp_path):
    source = save(tmp_path / "small.png", scene((4, 4), (50, 50), (90, 150))[:90, :150])
    assert run(config, "--input", source, "--output", tmp_path / "new" / "result.jpg") == 0
    assert pixels(tmp_path / "new" / "result.jpg").shape == (270, 450, 3)
    assert files(tmp_path / "new") == ["result.jpg"]


def test_files_folders_and_globs_are_all_found_once_and_keep_their_names(config, tmp_path):
    for name in ("a/one.png", "a/deep/two.jpg", "a/.hidden.png", "b/one.png", "b/three.PNG", "a/notes.txt"):
        save(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no image")
    inputs = [tmp_path / "a", tmp_path / "b" / "*", tmp_path / "a" / "one.png"]
    assert run(config, "--input", *inputs, "--output", tmp_path / "a" / "out") == 0
    assert files(tmp_path / "a" / "out") == ["deep/two.jpg", "one-2.png", "one.png", "three.PNG"]
    # The pictures of the first run are no input of the second.
    assert run(config, "--input", tmp_path / "a", "--output", tmp_path / "a" / "out") == 0
    assert len(files(tmp_path / "a" / "out")) == 4


@embedded_only
@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_the_threshold_filters(config, tmp_path, task):
    source = save(tmp_path / "in.png")
    drawn = {}
    for threshold in (0.1, 0.9):
        output = tmp_path / f"{threshold}.png"
        options = ["--task", task, "--confidence-threshold", threshold]
        assert run(config, "--input", source, "--output", output, *options) == 0
        drawn[threshold] = pixels(output)
    assert (drawn[0.1][60, 60] == drawn[0.9][60, 60]).all()  # red: 0.95
    assert np.abs(drawn[0.1][150, 290] - drawn[0.9][150, 290]).max() > 40  # blue: 0.4


def test_predictions_below_the_threshold_are_gone(config):
    cfg = demo.setup_cfg(config, [])
    predictions, _ = VisualizationDemo(cfg, confidence_threshold=0.5).run_on_image(scene()[:, :, ::-1])
    assert predictions["instances"].scores.tolist() == pytest.approx([0.95])
    ids, segments = predictions["panoptic_seg"]
    assert [segment["id"] for segment in segments] == [1, 2] and sorted(ids.unique().tolist()) == [0, 1, 2]


@embedded_only
def test_each_task_draws_its_result_and_the_richest_is_the_default(config, tmp_path):
    source = save(tmp_path / "in.png")
    drawn = {}
    for task in ("panoptic", "instance", "semantic", None):
        output = tmp_path / f"{task}.png"
        assert run(config, "--input", source, "--output", output, *(["--task", task] if task else [])) == 0
        drawn[task] = pixels(output)
    assert (drawn[None] == drawn["panoptic"]).all()
    assert (drawn["instance"][290, 5] == 120).all()  # no stuff
    assert (drawn["semantic"][290, 5] != 120).any() and (drawn["panoptic"][290, 5] != 120).any()
    assert (drawn["semantic"] != drawn["panoptic"]).any()


def test_a_broken_image_does_not_stop_the_others(config, tmp_path, capsys):
    save(tmp_path / "in" / "a.png"), save(tmp_path / "in" / "c.png")
    whole = save(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "in" / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "d.png").write_text("no image")
    assert run(config, "--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    assert files(tmp_path / "out") == ["a.png", "c.png"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2 and "b.jpg" in errors[0] and "d.png" in errors[1]


def test_images_of_every_kind_are_read_upright(config, tmp_path):
    folder = tmp_path / "in"
    save(folder / "gray.png", scene()[..., 0]), save(folder / "pixel.png", scene()[:1, :1])
    Image.fromarray(scene()).convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(scene()).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(scene()).save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(scene()).save(folder / "turned.jpg", exif=exif)
    assert run(config, "--input", folder, "--output", tmp_path / "out") == 0
    shapes = {name: pixels(tmp_path / "out" / name).shape[:2] for name in files(tmp_path / "out")}
    assert shapes.pop("turned.jpg") == (451, 301) and shapes.pop("pixel.png") == (1, 1)
    assert shapes == dict.fromkeys(["alpha.png", "cmyk.jpg", "gray.png", "palette.gif.png"], (301, 451))


def test_what_a_user_gets_wrong_is_named_and_nothing_is_written(config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = save(tmp_path / "one.png"), save(tmp_path / "two.png")
    (tmp_path / "bad.yaml").write_text("MODEL: {NO_SUCH_KEY: 1}\n")
    (tmp_path / "film.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    output = ["--output", tmp_path / "out"]
    cases = {
        "nothing.png": ["--input", tmp_path / "nothing.png", *output],
        "no*": ["--input", tmp_path / "no*", *output],
        "empty": ["--input", tmp_path / "empty", *output],
        "result.png": ["--input", one, two, "--output", tmp_path / "result.png"],
        "one.png": ["--input", one, "--output", one],
        "sub": ["--input", two, "--output", one / "sub"],
        "film.mp4": ["--video-input", tmp_path / "film.mp4", *output],
        "no.mp4": ["--video-input", tmp_path / "no.mp4", *output],
        "x.xyz": ["--video-input", tmp_path / "film.mp4", "--output", tmp_path / "x.xyz"],
        "w.pth": ["--input", one, *output, "--opts", "MODEL.WEIGHTS", "w.pth"],
        "NO.SUCH": ["--input", one, *output, "--opts", "NO.SUCH", "1"],
    }
    for named, arguments in cases.items():
        assert run(config, *arguments) == 1, named
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert named in error
        assert files(tmp_path) == before, named
    assert demo.main(["--config-file", str(tmp_path / "bad.yaml"), "--input", str(one)]) == 1
    assert "NO_SUCH_KEY" in capsys.readouterr().err
    assert demo.main(["--config-file", str(tmp_path / "no.yaml"), "--input", str(one)]) == 1
    assert "no.yaml" in capsys.readouterr().err and not (tmp_path / "output").exists()


def test_missing_cuda_and_random_weights_are_told(config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(demo.logger, "propagate", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("INFO"):
        assert demo.setup_cfg(config, ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cpu"
    assert "running on the CPU" in caplog.text and "weights are random" in caplog.text


def test_pictures_without_any_segment_are_told(config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(demo.logger, "propagate", True)
    source = save(tmp_path / "in.png")
    arguments = ["--input", source, "--output", tmp_path / "out", "--task", "instance", "--confidence-threshold"]
    assert run(config, *arguments, 0.9) == 0 and "lower --confidence-threshold" not in caplog.text
    assert run(config, *arguments, 0.99) == 0 and "lower --confidence-threshold" in caplog.text


def test_settings_may_stand_before_other_flags(config, tmp_path):
    source = save(tmp_path / "in.png")
    options = ["--opts", "INPUT.MAX_SIZE_TEST", "200", "--input", source, "--output", tmp_path / "out.png"]
    assert run(config, *options) == 0 and (tmp_path / "out.png").is_file()


# ---- video

FRAMES = 12


def moving_scene(number: int) -> np.ndarray:
    return scene((40 + 5 * number, 40), (280 - 5 * number, 140))


def film(path: Path, fps: float = 12.5) -> Path:
    writer = media.VideoWriter(path, fps, (301, 451))
    for number in range(FRAMES):
        writer.write(np.ascontiguousarray(moving_scene(number)[:, :, ::-1]))
    writer.close()
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    return [frame.copy() for frame in media.VideoReader(str(path))]


@pytest.fixture(params=["h264", "vp9"])
def ending(request, monkeypatch) -> str:
    if request.param == "vp9":
        monkeypatch.setattr(media, "av", None)
        return ".webm"
    pytest.importorskip("av")
    return ".mp4"


@embedded_only
def test_a_video_comes_back_with_all_frames_and_steady_colours(config, tmp_path, ending):
    source = film(tmp_path / f"film{ending}")
    assert run(config, "--video-input", source, "--output", tmp_path / "out") == 0
    assert files(tmp_path / "out") == [f"film{ending}"]
    result = tmp_path / "out" / f"film{ending}"
    frames = frames_of(result)
    assert len(frames) == FRAMES and abs(media.VideoReader(str(result)).fps - 12.5) < 0.1
    assert frames[0].shape == (302, 452, 3)  # odd sides grow by a pixel
    if ending == ".mp4":  # what browsers play
        codec = media.av.open(str(result)).streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    red = np.array([frame[55, 55 + 5 * number] for number, frame in enumerate(frames)]).astype(int)
    blue = np.array([frame[155, 295 - 5 * number] for number, frame in enumerate(frames)]).astype(int)
    assert np.ptp(red, axis=0).max() < 25 and np.ptp(blue, axis=0).max() < 25
    assert np.abs(red.mean(0) - blue.mean(0)).max() > 60


def test_a_video_that_fails_halfway_leaves_no_file(config, tmp_path, monkeypatch, capsys):
    pytest.importorskip("av")
    source = film(tmp_path / "film.mp4")
    predict, calls = VisualizationDemo.predict, []

    def fail_later(self, image):
        calls.append(image)
        if len(calls) > 3:
            raise ValueError("broken frame")
        return predict(self, image)

    monkeypatch.setattr(VisualizationDemo, "predict", fail_later)
    assert run(config, "--video-input", source, "--output", tmp_path / "out") == 1
    assert "broken frame" in capsys.readouterr().err and files(tmp_path / "out") == []


def test_frames_are_taken_one_at_a_time(config):
    taken = []

    def frames():
        for number in range(5):
            taken.append(number)
            yield np.ascontiguousarray(moving_scene(number)[:, :, ::-1])

    drawn = VisualizationDemo(demo.setup_cfg(config, [])).run_on_video(frames())
    first = next(drawn)
    assert taken == [0] and first.shape == (301, 451, 3) and first.dtype == np.uint8


def test_mp4_without_pyav_names_the_remedy(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(media, "av", None)
    source = film(tmp_path / "film.webm")
    assert run(config, "--video-input", source, "--output", tmp_path / "out.mp4") == 1
    assert "pip install av" in capsys.readouterr().err


def test_a_window_is_refused_where_there_is_none(config, tmp_path, monkeypatch, capsys):
    def no_window(*_):
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "namedWindow", no_window)
    assert run(config, "--input", save(tmp_path / "in.png"), "--window") == 1
    assert "--window" in capsys.readouterr().err


def test_the_script_itself_ends_with_a_status_and_no_traceback(tmp_path):
    command = [sys.executable, DEMO / "demo.py", "--config-file", "no.yaml", "--input", tmp_path / "in.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ}, timeout=120)
    assert done.returncode == 1 and "no.yaml" in done.stderr and "Traceback" not in done.stderr
