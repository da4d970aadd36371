"""Finding, reading and writing of pictures and videos. What a user can get wrong ends in a InputError."""

import contextlib
import glob
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

try:
    import av
except ImportError:  # an extra: without it videos are written as VP9
    av = None

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
WRITABLE_IMAGES = IMAGE_SUFFIXES - {".gif"}
H264_SUFFIXES = {".mp4", ".mov", ".mkv"}
DEFAULT_FPS = 25.0


class InputError(Exception):
    """Says what is wrong with which file, and what to do."""


def find_images(inputs: list[str]) -> dict[Path, Path]:
    """The images that files, folders (searched whole) and globs name.

    Returns:
        each image and its name below an output folder: a folder keeps its inner order, and no two have the same name.
    """
    found: dict[Path, Path] = {}
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            files = {file: file.relative_to(path) for file in sorted(path.rglob("*")) if _is_image(file, path)}
            if not files:
                raise InputError(
                    f"no image in the folder {name}: the known endings are {' '.join(sorted(IMAGE_SUFFIXES))}"
                )
        elif path.is_file():
            files = {path: Path(path.name)}
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            files = {file: Path(file.name) for file in matches if file.is_file()}
            if not files:
                kind = "no file matches" if glob.has_magic(name) else "there is no file or folder"
                raise InputError(f"{kind} {name}: check the path given to --input")
        for file, target in files.items():
            found.setdefault(file, target)
    return _distinct(found)


def _is_image(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not hidden


def _distinct(found: dict[Path, Path]) -> dict[Path, Path]:
    """Number the names that would come twice, and give formats that cannot be written another ending."""
    result: dict[Path, Path] = {}
    used: set[str] = set()
    for file, target in found.items():
        if target.suffix.lower() not in WRITABLE_IMAGES:
            target = target.with_name(target.name + ".png")
        candidate, number = target, 1
        while str(candidate).lower() in used:
            number += 1
            candidate = target.with_name(f"{target.stem}-{number}{target.suffix}")
        used.add(str(candidate).lower())
        result[file] = candidate
    return result


def output_paths(images: dict[Path, Path], output: str) -> dict[Path, Path]:
    """Where the picture of each image goes: into the folder `output`, or, of a single image, to the file `output`."""
    target = Path(output).expanduser()
    is_file = target.is_file() or (target.suffix.lower() in WRITABLE_IMAGES and not target.is_dir())
    if is_file and len(images) > 1:
        raise InputError(f"--output {output} is a file, but there are {len(images)} inputs: give a folder")
    if is_file and target.suffix.lower() not in WRITABLE_IMAGES:
        raise InputError(f"--output {output} is a file, and not a picture: give a folder or a name such as result.png")
    # Pictures of an earlier run are no input, even if the output lies within the folder of the images.
    inner = [image for image in images if not is_file and target.resolve() in image.resolve().parents]
    paths = {image: target if is_file else target / name for image, name in images.items() if image not in inner}
    for image, path in paths.items():
        check_not_input(image, path)
    if not paths:
        raise InputError(f"--output {output} is the folder of the images: give another folder")
    make_folder(target.parent if is_file else target)
    return paths


def check_not_input(source: Path, target: Path) -> None:
    if target.exists() and target.resolve() == source.resolve():
        raise InputError(f"the output would overwrite the input {source}: give another --output")


def make_folder(folder: Path) -> None:
    """Create a folder, and find out now whether it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror}; give another --output") from error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, renamed to `path` on success and removed on failure."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR, upright."""
    try:
        return read_image(str(path), format="BGR")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {path}: {error}; is it damaged, or no image?") from error


def save_image(path: Path, picture: np.ndarray) -> None:
    """Write a (H, W, 3) RGB picture in the format of its name, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, quality=95)


class VideoReader:
    """The frames of a video file, or of a camera by its number, one at a time."""

    def __init__(self, source: str | int) -> None:
        self.name = f"the camera {source}" if isinstance(source, int) else f"the video {source}"
        if isinstance(source, str) and not Path(source).is_file():
            raise InputError(f"there is no video {source}: check the path")
        self.capture = cv2.VideoCapture(source)
        self.is_file = isinstance(source, str)
        read, first = self.capture.read() if self.capture.isOpened() else (False, None)
        if not read or first is None:
            hint = "is it damaged, or no video?" if self.is_file else "is it connected and free?"
            raise InputError(f"cannot read {self.name}: {hint}")
        self._first: np.ndarray = first
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0.1 < fps <= 1000 else DEFAULT_FPS
        count = self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        # What the file claims: a guess, and for cameras nonsense.
        self.expected = int(count) if self.is_file and 0 < count < 1e9 else None
        self.read_frames = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self._first.shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        frame = self._first
        read = True
        while read and frame is not None:
            self.read_frames += 1
            yield frame
            read, frame = self.capture.read()
        self.capture.release()


def video_path(source: str, output: str) -> Path:
    """Where the drawn video goes; browsers play all that is written."""
    target = Path(output).expanduser()
    if not target.suffix or target.is_dir():
        stem = "webcam" if source.isdigit() else Path(source).stem
        target = target / (stem + (".webm" if av is None else ".mp4"))
    suffix = target.suffix.lower()
    if suffix in H264_SUFFIXES and av is None:
        raise InputError(f"writing {target} needs PyAV: pip install av, or give an --output that ends in .webm")
    if suffix not in H264_SUFFIXES | {".webm"}:
        raise InputError(f"cannot write a video {target}: end --output in .webm, {', '.join(sorted(H264_SUFFIXES))}")
    check_not_input(Path(source), target)
    make_folder(target.parent)
    return target


class VideoWriter:
    """Writes (H, W, 3) BGR frames as they come: H.264 by PyAV, or VP9 by OpenCV for names in .webm."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self.size = size
        # Colours are stored at half the size, which must be whole: odd sides grow by a pixel.
        self.border = size[0] % 2, size[1] % 2
        height, width = size[0] + self.border[0], size[1] + self.border[1]
        self.container: Any = None
        if path.suffix.lower() == ".webm":
            self.writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP90"), fps, (width, height))
            if not self.writer.isOpened():
                raise InputError(f"this OpenCV cannot write VP9 ({path.name}): pip install av and give an .mp4")
            return
        self.container = av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix != ".mkv" else {})
        self.stream = self.container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self.stream.height, self.stream.width = height, width
        self.stream.pix_fmt = "yuv420p"
        self.stream.options = {"crf": "20", "preset": "veryfast"}

    def write(self, frame: np.ndarray) -> None:
        if frame.shape[:2] != self.size:  # a stream may change its size; a file cannot
            frame = cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA)
        frame = cv2.copyMakeBorder(frame, 0, self.border[0], 0, self.border[1], cv2.BORDER_REPLICATE)
        if self.container is None:
            self.writer.write(frame)
        else:
            self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))

    def close(self) -> None:
        if self.container is None:
            self.writer.release()
            return
        self.container.mux(self.stream.encode())
        self.container.close()
