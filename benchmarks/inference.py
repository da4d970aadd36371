"""Image to results: this model against the published order of operations, or against transformers'.

python benchmarks/inference.py --config r50 --size 800 1088
python benchmarks/inference.py --config swin_t --against transformers
python benchmarks/inference.py --profile bfloat16 --flame flame.png
python benchmarks/inference.py --batches 1 2 4 8 --size 320 480
python benchmarks/inference.py --device cuda --batches 1 8 --compile
python benchmarks/inference.py --device cuda --batches 1 --compile reduce-overhead      with CUDA graphs
python benchmarks/inference.py --config configs/shapes/panoptic.yaml --weights output/shapes/model_final.pth \\
    --images datasets/shapes/val/images/*.jpg --size 144 192      what bfloat16 changes in a trained model
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import cv2
import torch
from against_transformers import Transformers, apart
from common import CONFIGS, Worker, alternate, arguments, build, clock, gpu_peak, image, matmul_rate, report, settle
from detectron2.data.detection_utils import read_image
from flame import flame
from plain import PlainModel
from torch.utils.flop_counter import FlopCounterMode

PRECISION = "MODEL.MASK_FORMER.TEST.PRECISION"


def main() -> None:
    parser = arguments(__doc__, gpu=True)
    parser.add_argument("--config", default="r50", help=f"{', '.join(CONFIGS)}, or a config file")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--weights", help="a checkpoint; by default the tests' untrained weights")
    parser.add_argument("--images", nargs="+", help="files, resized to --size; by default one made up")
    parser.add_argument("--output", type=int, nargs=2, help="size of the results; by default the image's")
    parser.add_argument("--against", choices=["plain", "transformers"], default="plain")
    parser.add_argument("--batches", type=int, nargs="+", help="throughput of batches of mixed sizes instead")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=("default", "reduce-overhead"),
        help="with --batches: also by torch.compile, in this mode, and all images of one size",
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="float32",
        choices=("float32", "bfloat16"),
        help="where the time goes, by part and by operation, in this precision",
    )
    parser.add_argument("--flame", type=Path, help="with --profile: also as a picture, in this file")
    args = parser.parse_args()
    if args.compile and not args.batches:
        parser.error("--compile needs --batches, for example --batches 1 8")
    if args.flame and (not args.profile or args.device != "cpu"):
        parser.error("--flame draws what --profile measures on the CPU: add --profile, leave --device out")
    if args.device != "cpu" and args.against == "transformers":
        parser.error("--against transformers runs on the CPU: leave --device out")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.profile:
        profile(args)
    elif args.batches:
        throughput(args)
    else:
        compare(args)


class Ours:
    """This model, image by image."""

    def __init__(self, args: Any, precision: str) -> None:
        self.model = build(args.config, PRECISION, precision, weights=args.weights, device=args.device)
        self.samples = samples_of(args)

    @torch.inference_mode()
    def run(self) -> list[dict[str, Any]]:
        return [self.model([sample])[0] for sample in self.samples]

    def results(self) -> dict[str, torch.Tensor]:
        return comparable(self.run())

    @torch.inference_mode()
    def logits(self) -> dict[str, torch.Tensor]:
        """Classes (B, Q, K + 1) and masks (B, Q, H, W) of the last layer."""
        outputs = [self.model.predictions(self.model.normalized(sample)[None]) for sample in self.samples]
        return {name: torch.cat([output[name] for output in outputs]).cpu() for name in ("pred_logits", "pred_masks")}

    @torch.no_grad()
    def flops(self) -> int:
        """Of all matrix products and convolutions of one forward pass; a multiply-add is two."""
        self.model.requires_grad_(False)  # the counter looks for gradients' functions
        with FlopCounterMode(display=False) as counter:
            for sample in self.samples:
                self.model.predictions(self.model.normalized(sample)[None])
        return counter.get_total_flops()


class Plain:
    """The published order of operations, for the same images."""

    def __init__(self, args: Any) -> None:
        self.model = PlainModel(build(args.config, weights=args.weights, device=args.device))
        self.samples = samples_of(args)

    @torch.inference_mode()
    def run(self) -> list[dict[str, Any]]:
        return [self.model([sample])[0] for sample in self.samples]

    def results(self) -> dict[str, torch.Tensor]:
        return comparable(self.run())


def samples_of(args: Any) -> list[dict[str, Any]]:
    """What the model is given, an entry for each image."""
    height, width = args.size
    out_height, out_width = args.output or args.size
    if args.images:
        pixels = [cv2.resize(read_image(path, "RGB"), (width, height)) for path in args.images]
        images = [torch.from_numpy(picture).permute(2, 0, 1).contiguous() for picture in pixels]
    else:
        images = [image(height, width)]
    return [{"image": picture, "height": out_height, "width": out_width} for picture in images]


def compare(args: Any) -> None:
    """float32 and bfloat16 against the other side, with the arithmetic's own limit; a process for each side."""
    if args.against == "plain":
        theirs = Worker(Plain, args)
    else:
        theirs = Worker(Transformers, args.config, samples_of(args)[0])
    with theirs, Worker(Ours, args, "float32") as precise, Worker(Ours, args, "bfloat16") as fast:
        measured = alternate({args.against: theirs, "float32": precise, "bfloat16": fast}, args.repeats)
        expected, results, logits = theirs.ask("results"), precise.ask("results"), precise.ask("logits")
        agreement = {"bfloat16": mask_signs(logits, fast.ask("logits"))}
        operations = precise.ask("flops")
    if args.against == "plain":
        agreement["float32"] = agree(expected, results)
    else:
        agreement["float32"] = apart(logits, results["scores"], expected)
    limit = {
        "float32": operations / matmul_rate(device=args.device) / 1e9,
        "bfloat16": operations / matmul_rate(torch.bfloat16, args.device) / 1e9,
    }
    unit = clock(args.device)
    rows = [
        {
            "side": name,
            "wall s": times["wall"],
            "cpu s": times["cpu"],
            f"times faster ({unit})": measured[args.against][unit] / times[unit],
            f"limit {unit} s": limit.get(name, ""),
            "of limit": times[unit] / limit[name] if name in limit else "",
            "results agree": agreement.get(name, ""),
        }
        for name, times in measured.items()
    ]
    (height, width), (out_height, out_width) = args.size, args.output or args.size
    report(
        f"{args.config}, {height}x{width} to {out_height}x{out_width}, {operations / 1e9:.0f} GFLOP", rows, args.json
    )


def comparable(results: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What both sides' results are compared by: labels and segments of the pixels, sorted scores of the instances."""
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for result in results:
        if "sem_seg" in result:
            labels = result["sem_seg"]
            found["semantic"].append((labels if labels.dim() == 2 else labels.argmax(0)).flatten())
        if "panoptic_seg" in result:
            found["panoptic"].append(result["panoptic_seg"][0].flatten())
        if "instances" in result:
            instances = result["instances"]
            scores = instances["scores"] if isinstance(instances, dict) else instances.scores
            found["scores"].append(scores.sort(descending=True)[0])
    return {name: torch.cat(parts).cpu() for name, parts in found.items()}


def agree(expected: dict[str, torch.Tensor], result: dict[str, torch.Tensor]) -> str:
    """Shares of pixels that agree, and the largest difference of the sorted scores."""
    parts = []
    for name, a in expected.items():
        b = result[name]
        if name == "scores":
            count = min(len(a), len(b))
            parts.append(f"scores {float((a[:count] - b[:count]).abs().max()):.1e}")
        else:
            parts.append(f"{name} {(a == b).float().mean():.4%}")
    return ", ".join(parts)


def mask_signs(precise: dict[str, torch.Tensor], fast: dict[str, torch.Tensor]) -> str:
    """How far both precisions' raw outputs agree: signs of all mask logits, class probabilities, and scores.

    A score is that of an instance, class probability times mean mask probability inside the mask, compared query by
    query and class by class.
    """
    outputs = precise, fast
    masks = [output["pred_masks"] for output in outputs]
    signs = ((masks[0] > 0) == (masks[1] > 0)).float().mean()
    probs = [output["pred_logits"].float().softmax(-1) for output in outputs]
    scores = [p[..., :-1] * _certainty(m)[..., None] for p, m in zip(probs, masks, strict=True)]
    by_class, by_score = ((a - b).abs() for a, b in (probs, scores))
    close = (by_score.amax(-1) < 0.01).float().mean()
    return (
        f"mask signs {signs:.3%}, class probabilities {float(by_class.max()):.1e}, scores of the same query "
        f"{float(by_score.max()):.1e}, {close:.1%} of the queries within 0.01"
    )


def _certainty(masks: torch.Tensor) -> torch.Tensor:
    """Mean probability inside each mask; (B, Q, H, W) logits to (B, Q)."""
    inside = masks > 0
    return (masks.float().sigmoid() * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)


@torch.inference_mode()
def throughput(args: Any) -> None:
    """Images per second of batches, and peak memory on a GPU; sizes are mixed, every third image is upright."""
    sides: dict[str, Callable] = {"float32": build(args.config, device=args.device)}
    if args.device == "cuda":
        for half in ("bfloat16", "float16"):
            sides[half] = build(args.config, PRECISION, half, device=args.device)
        plain = PlainModel(sides["float32"])
        sides |= {"plain": plain, "plain in bfloat16": torch.autocast("cuda", torch.bfloat16)(plain)}
    if args.compile:
        sides["bfloat16 compiled"] = compiled = build(args.config, PRECISION, "bfloat16", device=args.device)
        for part in (compiled.backbone, compiled.sem_seg_head):
            part.compile(fullgraph=True, dynamic=False, mode=args.compile)
    height, width = args.size
    unit = clock(args.device)
    rows = []
    for size in args.batches:
        upright = [i % 3 == 2 and not args.compile for i in range(size)]
        batch = [{"image": image(*((width, height) if turned else (height, width)))} for turned in upright]
        runs = {name: partial(stepped, model, batch) for name, model in sides.items()}
        measured = alternate(runs | {"float32 singly": partial(one_by_one, sides["float32"], batch)}, args.repeats)
        for name, times in measured.items():
            rows.append({"batch": size, "side": name, f"images/{unit} s": size / times[unit]})
            if args.device == "cuda" and name in runs:
                rows[-1]["peak GB"] = gpu_peak(runs[name])
    report(f"{args.config}, {height}x{width}{'' if args.compile else ' and upright'}", rows, args.json)


def stepped(model: Callable, batch: list[dict[str, Any]]) -> Any:
    """With CUDA graphs, what the last call returned may now be overwritten; without, this says nothing."""
    torch.compiler.cudagraph_mark_step_begin()
    return model(batch)


def one_by_one(model: Any, batch: list[dict[str, Any]]) -> list[Any]:
    return [model([sample]) for sample in batch]


@torch.inference_mode()
def profile(args: Any) -> None:
    """Seconds of the model's parts, then of operations."""
    model = build(args.config, PRECISION, args.profile, device=args.device)
    sample = {"image": image(*args.size)}
    half = torch.autocast(args.device, torch.bfloat16, enabled=args.profile == "bfloat16")
    batch = model.normalized(sample)[None].contiguous(memory_format=torch.channels_last)
    with half:
        features = model.backbone(batch)
    parts = {
        "backbone": half(lambda: model.backbone(batch)),
        "head": half(lambda: model.sem_seg_head(features)),
        "image to results": lambda: model([sample]),
    }
    unit = clock(args.device)
    rows = [{"part": name, f"{unit} s": times[unit]} for name, times in alternate(parts, args.repeats).items()]
    if args.flame:
        flame(partial(model, [sample]), f"{args.config}, {args.size[0]}x{args.size[1]}, {args.profile}", args.flame)
    with torch.profiler.profile() as recorded:
        model([sample])
        settle()
    spent = attrgetter("self_device_time_total" if args.device == "cuda" else "self_cpu_time_total")
    events = sorted(recorded.key_averages(), key=spent, reverse=True)
    total = sum(map(spent, events))
    rows += [{"part": event.key, "share": spent(event) / total, "calls": event.count} for event in events[:15]]
    report(f"{args.config}, {args.size[0]}x{args.size[1]}, {args.profile}", rows, args.json)


if __name__ == "__main__":
    main()
