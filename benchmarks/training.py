"""A training step, forward and backward, against the published order of operations.

python benchmarks/training.py --config r50 --size 512 --images 2 --instances 17
python benchmarks/training.py --memory      peak above the weights
python benchmarks/training.py --steps 200   losses of float32 and bfloat16 side by side, on a small model
"""

import copy
import json
import resource
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import CONFIGS, ROOT, Worker, alternate, arguments, build, clock, gpu_peak, image, report
from detectron2.structures import Instances
from plain import PlainModel

from mask2former.optimizer import clip_full_model

CHECKPOINTING = "MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING"
SIDES = ("plain", "float32", "bfloat16", "float32 checkpointed", "bfloat16 checkpointed")
SHAPES = ROOT / "configs" / "shapes" / "panoptic.yaml"


def main() -> None:
    parser = arguments(__doc__, gpu=True)
    parser.add_argument("--config", default="r50", help=f"{', '.join(CONFIGS)}, or a config file")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--instances", type=int, default=17, help="of all images together")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--steps", type=int, help="compare this many losses of a small model instead")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "training_losses.png")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory:
        compare_memory(args)
    elif args.steps:
        compare_losses(args)
    else:
        compare_time(args)


class Side:
    """Training steps of one side, by its name in `SIDES`."""

    def __init__(self, args: Any, name: str) -> None:
        model = build(args.config, CHECKPOINTING, "checkpointed" in name, device=args.device).train()
        self.model = PlainModel(model) if name == "plain" else model
        self.half = "bfloat16" in name
        self.on_gpu = args.device == "cuda"
        self.samples = batch(args)

    def run(self) -> float:
        """The loss."""
        return step(self.model, self.samples, self.half)

    def peak(self) -> int:
        """Bytes above the weights in the second step: the first fills caches and makes gradients, which stay."""
        if self.on_gpu:
            self.run()
            return round(1e9 * gpu_peak(self.run))
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        for _ in range(2):
            self.run()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def worker(args: Any, name: str) -> Worker:
    return Worker(Side, args, name)


def compare_time(args: Any) -> None:
    with ExitStack() as stack:
        sides = {name: stack.enter_context(worker(args, name)) for name in SIDES[:3]}
        measured = alternate(sides, args.repeats)
        losses = {name: side.ask("run") for name, side in sides.items()}
    unit = clock(args.device)
    rows = [
        {
            "side": name,
            "wall s": times["wall"],
            "cpu s": times["cpu"],
            f"times faster ({unit})": measured["plain"][unit] / times[unit],
            "loss": losses[name],
        }
        for name, times in measured.items()
    ]
    report(f"{args.config}, {args.images} images of {args.size}, {args.instances} instances", rows, args.json)


def compare_memory(args: Any) -> None:
    rows: list[dict[str, Any]] = []
    for name in SIDES:
        with worker(args, name) as side:
            rows.append({"side": name, "peak GB": side.ask("peak") / 1e9, "loss": side.ask("run")})
        rows[-1]["of plain"] = rows[-1]["peak GB"] / rows[0]["peak GB"]
    report(f"{args.config}, {args.images} images of {args.size}, above the weights", rows, args.json)


def compare_losses(args: Any) -> None:
    """Train twice from the same weights on the same images with the same random points; print and draw."""
    curves = {}
    for half in (False, True):
        model = build(str(SHAPES), device=args.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        clip_full_model(optimizer, 0.01)
        samples = [sample(128, count) for count in (3, 4)]
        for s in samples:
            s["instances"].gt_classes %= model.num_classes
        losses = []
        for n in range(args.steps):
            losses.append(step(model, samples, half, seed=n))
            optimizer.step()
        curves["bfloat16" if half else "float32"] = np.array(losses)
    window = min(20, args.steps)
    smooth = {name: np.convolve(losses, np.ones(window) / window, "valid") for name, losses in curves.items()}
    apart = np.abs(smooth["bfloat16"] / smooth["float32"] - 1)
    rows = [
        {"side": name, "first": losses[:window].mean(), "last": losses[-window:].mean(), "losses": losses.tolist()}
        for name, losses in curves.items()
    ]
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "apart": apart.tolist()}))
    shown = [{key: float(row[key]) if key != "side" else row[key] for key in ("side", "first", "last")} for row in rows]
    report(f"{args.steps} steps, apart by {apart.mean():.2%} on average, {apart.max():.2%} at most", shown, None)
    draw(smooth, args.plot)


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    """Curves over steps, the vertical axis from 0, as a PNG."""
    width, height, margin = 720, 400, 50
    top = max(curve.max() for curve in curves.values()) * 1.05
    canvas = np.full((height, width, 3), 255, np.uint8)
    text = {"fontFace": cv2.FONT_HERSHEY_SIMPLEX, "fontScale": 0.45, "color": (60, 60, 60), "lineType": cv2.LINE_AA}

    def place(x: float, y: float) -> tuple[int, int]:
        """Fractions of the axes to pixels."""
        return round(margin + x * (width - 2 * margin)), round(height - margin - y * (height - 2 * margin))

    for tick in range(5):
        cv2.line(canvas, place(0, tick / 4), place(1, tick / 4), (225, 225, 225), 1)
        cv2.putText(canvas, f"{top * tick / 4:.0f}", (10, place(0, tick / 4)[1] + 4), **text)
    for n, (name, curve) in enumerate(curves.items()):
        color = ((180, 90, 20), (30, 110, 230))[n]
        line = [place(i / max(len(curve) - 1, 1), value / top) for i, value in enumerate(curve)]
        cv2.polylines(canvas, [np.array(line, np.int32)], False, color, 2 - n, cv2.LINE_AA)
        cv2.putText(canvas, name, (width - 150, margin + 20 * n), **(text | {"color": color}))
    cv2.putText(canvas, f"loss, mean of 20 steps; {len(curve) + 19} steps", (margin, height - 15), **text)
    cv2.imwrite(str(path), canvas)


def batch(args: Any) -> list[dict[str, Any]]:
    counts = [args.instances // args.images + (i < args.instances % args.images) for i in range(args.images)]
    return [sample(args.size, count) for count in counts]


def step(model: torch.nn.Module, samples: list[dict[str, Any]], half: bool, seed: int = 0) -> float:
    """Gradients of the sum of all losses, from the random points of the seed; returns the sum."""
    torch.manual_seed(seed)
    model.zero_grad()
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=half):
        loss = sum(model(copy.copy(samples)).values())
    loss.backward()
    return float(loss.detach())


def sample(size: int, count: int) -> dict[str, Any]:
    """An image with `count` rectangles of different sizes."""
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for n in range(count):
        side = size // 8 + n * size // 40
        masks[n, n * size // (2 * count) :, :][:side, n * size // (2 * count) :][:, :side] = True
    instances = Instances((size, size), gt_classes=torch.arange(count) % 80, gt_masks=masks)
    return {"image": image(size, size), "instances": instances}


if __name__ == "__main__":
    main()
