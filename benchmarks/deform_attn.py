"""Deformable attention with the shapes of an 800x1088 image: the fused kernels against grid_sample.

python benchmarks/deform_attn.py
python benchmarks/deform_attn.py --device cuda --images 8
"""

from collections.abc import Callable
from typing import Any

import torch
from common import alternate, arguments, clock, report
from torch import Tensor

from mask2former.modeling.ops import ms_deform_attn_projected
from mask2former.modeling.pixel_decoder.msdeformattn import pixel_centers


def main() -> None:
    parser = arguments(__doc__, gpu=True)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=1)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes = tuple((args.size[0] // stride, args.size[1] // stride) for stride in (32, 16, 8))
    rows = compare(args, shapes, torch.float32)
    if args.device == "cuda":
        rows += compare(args, shapes, torch.bfloat16)
    pixels = sum(h * w for h, w in shapes)
    report(f"{args.images} x {pixels} queries, 8 heads, 3 levels, 4 points", rows, args.json)


def compare(args: Any, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> list[dict[str, Any]]:
    """A row for each direction; values, offsets and logits of this type."""
    pixels = sum(h * w for h, w in shapes)
    device = torch.device(args.device)
    torch.manual_seed(0)
    value = torch.randn(args.images, pixels, 8, 32).to(device, dtype).requires_grad_()
    projected = (torch.randn(args.images, pixels, 8 * 3 * 4 * 3) * 2).to(device, dtype).requires_grad_()
    centers = pixel_centers(shapes, device)
    fused = "triton" if args.device == "cuda" else "numba"

    def attend(backend: str) -> Tensor:
        return ms_deform_attn_projected(value, shapes, centers, projected, backend)

    forward = {name: lambda name=name: attend(name) for name in ("reference", fused)}
    with torch.no_grad():
        expected, result = (run().float() for run in forward.values())
        # Means: the slope of a bilinear sample jumps at pixel centres, where rounding decides.
        difference = {"forward": mean_difference(expected, result)}
        measured = {"forward": alternate(forward, args.repeats)}
    outputs = {name: run() for name, run in forward.items()}
    gradient = torch.randn_like(outputs[fused])

    def back(name: str) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(outputs[name], (value, projected), gradient, retain_graph=True)

    backward = {name: back(name) for name in outputs}
    pairs = zip(backward["reference"](), backward[fused](), strict=True)
    difference["backward"] = max(mean_difference(a, b) for a, b in pairs)
    measured["backward"] = alternate(backward, args.repeats)
    unit = clock(args.device)
    return [
        {
            "what": f"{what}, {dtype}".replace("torch.", ""),
            f"grid_sample {unit} s": times["reference"][unit],
            f"{fused} {unit} s": times[fused][unit],
            "times faster": times["reference"][unit] / times[fused][unit],
            "mean difference": difference[what],
        }
        for what, times in measured.items()
    ]


def mean_difference(expected: Tensor, result: Tensor) -> float:
    return float((expected.float() - result.float()).abs().mean() / expected.float().abs().mean())


if __name__ == "__main__":
    main()
