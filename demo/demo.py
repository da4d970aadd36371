"""Segment pictures, videos or a webcam with a trained model, and write what it finds as pictures or a video.

    python demo/demo.py --config-file configs/... --input street.jpg photos/ "more/*.png" --output results \\
        --opts MODEL.WEIGHTS model_final.pth
"""

import argparse
import pickle
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import cv2
import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from media import (
    InputError,
    VideoReader,
    VideoWriter,
    atomic,
    find_images,
    load_image,
    output_paths,
    save_image,
    video_path,
)
from predictor import RESULTS, VisualizationDemo
from tqdm import tqdm

import mask2former.data  # noqa: F401  registers the data sets, whose classes and colours label the result
from mask2former.setup_config import read_config, runnable_here

logger = setup_logger(name="demo")
WINDOW = "Mask2Former"
INSTANCE_THRESHOLD = 0.5


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Segment pictures or a video, and draw the result.", allow_abbrev=False
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's YAML file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="images, folders of images, globs in quotes")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument("--webcam", nargs="?", const=0, type=int, metavar="NUMBER", help="a camera; Ctrl-C ends it")
    parser.add_argument(
        "--output", metavar="PATH", help="a folder, or of one input a file (default: output/demo, none with --window)"
    )
    parser.add_argument(
        "--confidence-threshold", type=_fraction, metavar="0..1",
        help=f"leave out lower scores (default: {INSTANCE_THRESHOLD} for instances, the config's for panoptic)",
    )  # fmt: skip
    parser.add_argument("--task", choices=list(RESULTS), help="what to draw (default: the richest the config enables)")
    parser.add_argument("--window", action="store_true", help="show the result in a window, too")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings, as MODEL.WEIGHTS x.pth")
    return parser


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    args = get_parser().parse_args(arguments)
    try:
        return run(args)
    except (InputError, ValueError) as error:  # the packages raise ValueError for what a user can put right
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; unfinished output was removed", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    show = _open_window() if args.window else None
    output = args.output or (None if args.window else "output/demo")
    # Settings and paths are looked at before the model is built, which takes a while.
    cfg = setup_cfg(args.config_file, args.opts)
    if args.input:
        images = find_images(args.input)
        targets = output_paths(images, output) if output else dict.fromkeys(images)
        return segment_images(build(cfg, args), targets, show)
    source = args.video_input if args.video_input is not None else args.webcam
    target = video_path(str(source), output) if output else None
    reader = VideoReader(source)
    return segment_video(build(cfg, args), reader, target, show)


def build(cfg: CfgNode, args: argparse.Namespace) -> VisualizationDemo:
    """The model as configured, giving only the result that is drawn."""
    test = cfg.MODEL.MASK_FORMER.TEST
    task = args.task or next((task for task in RESULTS if test[f"{task.upper()}_ON"]), "semantic")
    threshold = args.confidence_threshold
    if threshold is not None:
        test.OBJECT_MASK_THRESHOLD = threshold
        if task == "semantic":
            logger.warning("--confidence-threshold has no effect: a semantic result has no scores")
    for other in RESULTS:
        # Next to panoptic results a model lists only things as instances: that switch stays as it is.
        if not (task == "instance" and other == "panoptic"):
            test[f"{other.upper()}_ON"] = other == task
    if threshold is None and task == "instance":
        threshold = INSTANCE_THRESHOLD
    try:
        return VisualizationDemo(cfg, task=task, confidence_threshold=threshold)
    except (OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        weights = cfg.MODEL.WEIGHTS or "(none)"
        raise InputError(f"cannot set up {args.config_file} with MODEL.WEIGHTS {weights}: {error}") from error


def setup_cfg(config_file: str, options: list[str]) -> CfgNode:
    """Read the config file and the settings after --opts, for a device that is there."""
    if not Path(config_file).is_file():
        raise InputError(f"there is no config file {config_file}: check --config-file")
    try:
        cfg = runnable_here(read_config(config_file, options))
    except (OSError, KeyError, ValueError, TypeError, AssertionError, yaml.YAMLError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise InputError(f"in {config_file} with --opts {' '.join(options) or '(none)'}: {message}") from error
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        logger.warning("MODEL.WEIGHTS is empty: the weights are random, and so is what will be drawn")
    elif "ImageNetPretrained" in weights:
        logger.warning("MODEL.WEIGHTS %s is a backbone only: the rest is random, and so is what will be drawn", weights)
    elif "://" not in weights and not Path(weights).expanduser().is_file():
        raise InputError(
            f"there is no file MODEL.WEIGHTS {weights}: give a trained model, as in --opts MODEL.WEIGHTS x.pth"
        )
    return cfg


def segment_images(
    demo: VisualizationDemo, targets: dict[Path, Path | None], show: Callable[[np.ndarray, int], bool] | None
) -> int:
    """Segment images one by one; one that cannot be read or written does not stop the others."""
    done, problems, empty, start = [], [], 0, time.perf_counter()
    for source, target in tqdm(targets.items(), unit="image", disable=len(targets) == 1):
        try:
            predictions, drawn = demo.run_on_image(load_image(source))
            picture = drawn.get_image()
            if target is not None:
                save_image(target, picture)
        except InputError as error:
            problems.append(str(error))
            continue
        done.append(target)
        empty += demo.is_empty(predictions)
        if show is not None and not show(picture, 0):
            break
    if done:
        where = f", the last one in {done[-1]}" if done[-1] else ""
        logger.info("%d of %d images drawn in %.1f s%s", len(done), len(targets), time.perf_counter() - start, where)
    if empty:
        logger.warning("in %d of them nothing scored enough: try a lower --confidence-threshold", empty)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def segment_video(
    demo: VisualizationDemo,
    reader: VideoReader,
    target: Path | None,
    show: Callable[[np.ndarray, int], bool] | None,
) -> int:
    """Segment a video frame by frame; the file appears when it is complete."""

    def pass_on(writer: VideoWriter | None) -> None:
        frames = tqdm(reader, total=reader.expected, unit="frame")
        # A camera has no end: stopping it is no failure, and what was recorded is kept.
        with nullcontext() if reader.is_file else suppress(KeyboardInterrupt):
            for frame in demo.run_on_video(frames):
                if writer is not None:
                    writer.write(frame)
                if show is not None and not show(frame[:, :, ::-1], 1):
                    return

    if target is None:
        pass_on(None)
        return 0
    with atomic(target) as temporary:
        writer = VideoWriter(temporary, reader.fps, reader.size)
        try:
            pass_on(writer)
        finally:
            writer.close()
    logger.info("%d frames drawn: %s", reader.read_frames, target)
    if reader.expected and reader.read_frames < 0.9 * reader.expected and show is None:
        logger.warning(
            "%s promises %d frames and gave %d: is it cut off?", reader.name, reader.expected, reader.read_frames
        )
    return 0


def _open_window() -> Callable[[np.ndarray, int], bool]:
    """A function that shows an RGB picture for some milliseconds (0: until a key) and says whether to go on."""
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
    except cv2.error as error:
        raise InputError(
            "--window: this OpenCV cannot open windows (opencv-python-headless, or no display); "
            "leave it out and look at the files in --output"
        ) from error

    def show(picture: np.ndarray, milliseconds: int) -> bool:
        cv2.imshow(WINDOW, np.ascontiguousarray(picture[:, :, ::-1]))
        return cv2.waitKey(milliseconds) & 0xFF not in (ord("q"), 27)

    return show


if __name__ == "__main__":
    sys.exit(main())
