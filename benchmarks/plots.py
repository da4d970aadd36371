"""Pictures of the cost of this model and of the plain one (`plain.py`), for docs/.

python benchmarks/plots.py --threads 1
python benchmarks/plots.py --threads 1 --quick --folder output/plots

cost_by_size.png: time and memory of image to results, against the side of a square image.
cost_by_counts.png: time against queries and classes (image to results), and against objects (a training step).
"""

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, arguments, build, image
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont
from plain import PlainModel

CONFIG = "r50_panoptic"
COLOURS = {"ours": (20, 90, 200), "plain": (220, 110, 10)}
LEGEND = {"ours": "here", "plain": "published order of operations"}
INK, GRID = (40, 40, 40), (222, 222, 222)
LABEL_MAP = ("MODEL.MASK_FORMER.TEST.SEMANTIC_LABEL_MAP", True)
Series = dict[str, list[tuple[float, float]]]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer points, smaller images")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where the pictures go")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    sides = [256, 384, 512] if args.quick else [256, 384, 512, 768, 1024]
    queries, classes = ([50, 200], [20, 400]) if args.quick else ([50, 100, 200, 400], [20, 133, 400, 850])
    objects = [1, 30] if args.quick else [1, 10, 30, 100]
    size = (192, 256) if args.quick else (256, 384)

    seconds, memory = by_size(sides, args.repeats)
    x_label = "side of the image (pixels)"
    draw(
        args.folder / "cost_by_size.png",
        [("Time, image to results", x_label, "CPU seconds", seconds),
         ("Peak memory above the weights", x_label, "GB", memory)],
    )  # fmt: skip
    key = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"
    by_queries = by_count(queries, args.repeats, lambda n: inference(size, key, n))
    by_classes = by_count(classes, args.repeats, lambda n: inference(size, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", n))
    by_objects = by_count(objects, args.repeats, training())
    here = f"{size[0]}x{size[1]} image to results"
    draw(
        args.folder / "cost_by_counts.png",
        [(here, "queries", "CPU seconds", by_queries),
         (here, "classes", "CPU seconds", by_classes),
         ("256x256 training step", "objects in the image", "CPU seconds", by_objects)],
    )  # fmt: skip


def by_size(sides: list[int], repeats: int) -> tuple[Series, Series]:
    """CPU seconds and GB of each side of the image."""
    seconds: Series = {"ours": [], "plain": []}
    memory: Series = {"ours": [], "plain": []}
    runs = inference((sides[0], sides[0]))
    for run in runs.values():
        run()  # compiles, warms up
    for side in sides:
        for name, run in inference((side, side)).items():
            took, peak = measured(run, repeats)
            seconds[name].append((side, took))
            memory[name].append((side, peak))
    return seconds, memory


def by_count(counts: list[int], repeats: int, sides: Callable[[int], dict[str, Callable[[], Any]]]) -> Series:
    """CPU seconds of each count."""
    seconds: Series = {"ours": [], "plain": []}
    for count in counts:
        for name, run in sides(count).items():
            run()
            seconds[name].append((count, measured(run, repeats)[0]))
    return seconds


def inference(size: tuple[int, int], *options: Any) -> dict[str, Callable[[], Any]]:
    """Both ways from one image to all results."""
    ours = build(CONFIG, *LABEL_MAP, *options)
    plain = PlainModel(build(CONFIG, *options))
    sample = [{"image": image(*size), "height": size[0], "width": size[1]}]

    def run(model: torch.nn.Module) -> None:
        with torch.inference_mode():
            model(sample)

    return {"ours": lambda: run(ours), "plain": lambda: run(plain)}


def training() -> Callable[[int], dict[str, Callable[[], Any]]]:
    """Losses and gradients of one image with so many objects."""
    model = build(CONFIG).train()
    plain = PlainModel(model)
    pixels = image(256, 256)
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")

    def step(trained: torch.nn.Module, count: int) -> None:
        places = torch.from_numpy(np.random.default_rng(0).uniform(20, 236, (2, count, 1, 1)))
        target = Instances((256, 256))
        target.gt_classes = torch.arange(count) % 80
        target.gt_masks = (rows - places[0]) ** 2 + (columns - places[1]) ** 2 < 400  # discs
        sum(trained([{"image": pixels, "instances": target}]).values()).backward()
        trained.zero_grad()

    return lambda count: {"ours": lambda: step(model, count), "plain": lambda: step(plain, count)}


def measured(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """The median of CPU seconds, and GB at the peak beyond what was in memory before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, seconds = kilobytes("VmRSS"), []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), (kilobytes("VmHWM") - before) * 1024 / 1e9


def kilobytes(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])


# Drawing, at twice the size for smooth lines.

Panel = tuple[str, str, str, Series]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 720, 130, 40, 130, 120


def draw(path: Path, panels: list[Panel]) -> None:
    """Panels side by side: title, names of the axes, points of each series."""
    picture = Image.new("RGB", (WIDTH * len(panels), HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    for number, panel in enumerate(panels):
        draw_panel(picture, pen, number * WIDTH, panel)
    picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS).save(path, optimize=True)


def draw_panel(picture: Image.Image, pen: ImageDraw.ImageDraw, x0: int, panel: Panel) -> None:
    title, x_label, y_label, series = panel
    points = [point for line in series.values() for point in line]
    x_ticks, y_ticks = (ticks(max(point[axis] for point in points)) for axis in (0, 1))
    left, right, top, bottom = x0 + LEFT, x0 + WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / x_ticks[-1] * (right - left), bottom - y / y_ticks[-1] * (bottom - top)

    small, large = ImageFont.load_default(26), ImageFont.load_default(32)
    pen.text(((left + right) / 2, 44), title, INK, large, anchor="mm")
    pen.text(((left + right) / 2, HEIGHT - 36), x_label, INK, small, anchor="mm")
    upright = Image.new("L", (400, 40))
    ImageDraw.Draw(upright).text((200, 20), y_label, 255, small, anchor="mm")
    upright = upright.rotate(90, expand=True)
    picture.paste(INK, (x0 + 10, (top + bottom) // 2 - 200), upright)
    for y in y_ticks:
        pen.line([place(0, y), place(x_ticks[-1], y)], GRID, 2)
        pen.text((left - 14, place(0, y)[1]), f"{y:g}", INK, small, anchor="rm")
    for x in x_ticks:
        pen.line([place(x, 0), (place(x, 0)[0], bottom + 10)], INK, 2)
        pen.text((place(x, 0)[0], bottom + 20), f"{x:g}", INK, small, anchor="mt")
    pen.line([place(0, y_ticks[-1]), place(0, 0), place(x_ticks[-1], 0)], INK, 3)
    for number, (name, line) in enumerate(series.items()):
        pen.line([place(*point) for point in line], COLOURS[name], 6, joint="curve")
        for x, y in (place(*point) for point in line):
            pen.ellipse((x - 9, y - 9, x + 9, y + 9), COLOURS[name])
        at = left + 30 + 170 * number
        pen.line([(at, top - 30), (at + 44, top - 30)], COLOURS[name], 6)
        pen.text((at + 54, top - 30), LEGEND[name], INK, small, anchor="lm")


def ticks(largest: float) -> list[float]:
    """From 0 to at least the largest value, in four to eight steps of 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(largest / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if largest <= 7 * power * factor)
    return [round(step * n, 10) for n in range(math.ceil(largest / step) + 1)]


if __name__ == "__main__":
    main()
