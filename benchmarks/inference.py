"""Image to results: this model against the published order of operations, or against transformers'.

python benchmarks/inference.py --config r50 --size 800 1088
python benchmarks/inference.py --config swin_t --against transformers
python benchmarks/inference.py --batches 1 2 4 8 --size 320 480
"""

from functools import partial
from typing import Any

import torch
from common import CONFIGS, alternate, arguments, build, image, matmul_rate, report
from plain import PlainModel
from torch.utils.flop_counter import FlopCounterMode

PRECISION = "MODEL.MASK_FORMER.TEST.PRECISION"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", default="r50", help=f"{', '.join(CONFIGS)}, or a config file")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--output", type=int, nargs=2, help="size of the results; by default the image's")
    parser.add_argument("--against", choices=["plain", "transformers"], default="plain")
    parser.add_argument("--batches", type=int, nargs="+", help="throughput of batches of mixed sizes instead")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by module and by operation")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.profile:
            profile(args)
        elif args.batches:
            throughput(args)
        else:
            compare(args)


def compare(args: Any) -> None:
    """float32 and bfloat16 against the other side, with the arithmetic's own limit."""
    precise = build(args.config)
    fast = build(args.config, PRECISION, "bfloat16")
    height, width = args.size
    out_height, out_width = args.output or args.size
    sample = {"image": image(height, width), "height": out_height, "width": out_width}
    if args.against == "plain":
        other = PlainModel(precise)
        run_other = lambda: other([sample])[0]
    else:
        from against_transformers import Transformers

        other = Transformers(precise, args.config)
        run_other = lambda: other(sample)
    sides = {args.against: run_other, "float32": lambda: precise([sample])[0], "bfloat16": lambda: fast([sample])[0]}
    if args.against == "plain":
        expected = other([sample])[0]
        agreement = {name: agree(expected, run()) for name, run in sides.items()}
    else:
        agreement = {"float32": other.agreement(precise, sample)}
    agreement |= mask_signs(precise, fast, sample)
    operations = flops(precise, sample)
    measured = alternate(sides, args.repeats)
    limit = {
        "float32": operations / matmul_rate() / 1e9,
        "bfloat16": operations / matmul_rate(torch.bfloat16) / 1e9,
    }
    rows = [
        {
            "side": name,
            "wall s": times["wall"],
            "cpu s": times["cpu"],
            "times faster (cpu)": measured[args.against]["cpu"] / times["cpu"],
            "limit cpu s": limit.get(name, ""),
            "of limit": times["cpu"] / limit[name] if name in limit else "",
            "results agree": agreement.get(name, ""),
        }
        for name, times in measured.items()
    ]
    report(
        f"{args.config}, {height}x{width} to {out_height}x{out_width}, {operations / 1e9:.0f} GFLOP", rows, args.json
    )


def agree(expected: dict[str, Any], result: dict[str, Any]) -> str:
    """Shares of pixels that agree, and the largest difference of the sorted scores."""
    parts = []
    if "sem_seg" in result:
        a, b = (x["sem_seg"] if x["sem_seg"].dim() == 2 else x["sem_seg"].argmax(0) for x in (expected, result))
        parts.append(f"semantic {(a == b).float().mean():.4%}")
    if "panoptic_seg" in result and "panoptic_seg" in expected:
        same = expected["panoptic_seg"][0] == result["panoptic_seg"][0]
        parts.append(f"panoptic {same.float().mean():.4%}")
    if "instances" in result and "instances" in expected:
        a, b = (_instances(x["instances"]) for x in (expected, result))
        count = min(len(a), len(b))
        parts.append(f"scores {float((a[:count] - b[:count]).abs().max()):.1e}")
    return ", ".join(parts)


def _instances(instances: Any) -> torch.Tensor:
    scores = instances["scores"] if isinstance(instances, dict) else instances.scores
    return scores.sort(descending=True)[0]


def mask_signs(precise: Any, fast: Any, sample: dict[str, Any]) -> dict[str, str]:
    """How far both precisions' raw outputs agree: signs of all mask logits, class probabilities, and scores.

    A score is that of an instance, class probability times mean mask probability inside the mask, compared query by
    query and class by class.
    """
    batch = precise.normalized(sample)[None]
    outputs = [model.predictions(batch) for model in (precise, fast)]
    masks = [output["pred_masks"] for output in outputs]
    signs = ((masks[0] > 0) == (masks[1] > 0)).float().mean()
    probs = [output["pred_logits"].float().softmax(-1) for output in outputs]
    scores = [p[..., :-1] * _certainty(m)[..., None] for p, m in zip(probs, masks, strict=True)]
    by_class, by_score = (float((a - b).abs().max()) for a, b in (probs, scores))
    text = f"mask signs {signs:.3%}, class probabilities {by_class:.1e}, scores of the same query {by_score:.1e}"
    return {"bfloat16": text}


def _certainty(masks: torch.Tensor) -> torch.Tensor:
    """Mean probability inside each mask; (B, Q, H, W) logits to (B, Q)."""
    inside = masks > 0
    return (masks.float().sigmoid() * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)


def flops(model: Any, sample: dict[str, Any]) -> int:
    """Of all matrix products and convolutions of one forward pass; a multiply-add is two."""
    with torch.inference_mode(False), torch.no_grad():
        model.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model.predictions(model.normalized(sample)[None])
    return counter.get_total_flops()


def throughput(args: Any) -> None:
    """Images per second of batches whose sizes are mixed: every third image is upright."""
    model = build(args.config)
    height, width = args.size
    rows = []
    for size in args.batches:
        batch = [{"image": image(*((width, height) if i % 3 == 2 else (height, width)))} for i in range(size)]
        measured = alternate(
            {"batch": partial(model, batch), "singly": partial(one_by_one, model, batch)}, args.repeats
        )
        rows.append({"batch": size} | {f"{name} images/cpu s": size / times["cpu"] for name, times in measured.items()})
    report(f"{args.config}, {height}x{width} and upright", rows, args.json)


def one_by_one(model: Any, batch: list[dict[str, Any]]) -> list[Any]:
    return [model([sample]) for sample in batch]


def profile(args: Any) -> None:
    """Seconds of the model's parts, then of operations."""
    model = build(args.config)
    sample = {"image": image(*args.size)}
    head = model.sem_seg_head
    batch = model.normalized(sample)[None].contiguous(memory_format=torch.channels_last)
    features = model.backbone(batch)
    mask_features, _, levels = head.pixel_decoder.forward_features(features)
    parts = {
        "backbone": lambda: model.backbone(batch),
        "pixel decoder": lambda: head.pixel_decoder.forward_features(features),
        "transformer decoder": lambda: head.predictor(levels, mask_features),
        "image to results": lambda: model([sample]),
    }
    rows = [{"part": name, "cpu s": times["cpu"]} for name, times in alternate(parts, args.repeats).items()]
    with torch.profiler.profile() as recorded:
        model([sample])
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)[:15]
    total = sum(event.self_cpu_time_total for event in recorded.key_averages())
    rows += [{"part": event.key, "share": event.self_cpu_time_total / total, "calls": event.count} for event in events]
    report(f"{args.config}, {args.size[0]}x{args.size[1]}", rows, args.json)


if __name__ == "__main__":
    main()
