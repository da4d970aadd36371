"""Peak memory above the weights of a large photo, each side in a process of its own.

python benchmarks/memory.py --image 800 1067 --output 3000 4000
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from common import arguments, build, image, report
from plain import PlainModel


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--image", type=int, nargs=2, default=(800, 1067), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--output", type=int, nargs=2, default=(3000, 4000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--config", default="r50_panoptic")
    parser.add_argument("--side", choices=["ours", "plain"], help="measure this one here, print JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.side:
        sys.stdout.write(json.dumps(measure(args)))
        return
    rows = []
    for side in ("ours", "plain"):
        done = subprocess.run([sys.executable, *sys.argv, "--side", side], capture_output=True, text=True, check=False)
        # The plain side needs some 30 GB: a machine without them ends it.
        rows.append(json.loads(done.stdout) if done.returncode == 0 else {"side": side, "ended": done.returncode})
    report(f"{args.config}, {args.image} to {args.output}", rows, args.json)


def measure(args: Any) -> dict[str, Any]:
    model = build(args.config, "MODEL.MASK_FORMER.TEST.SEMANTIC_LABEL_MAP", args.side == "ours")
    run = model if args.side == "ours" else PlainModel(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with torch.inference_mode():
        run([{"image": image(*args.image), "height": args.output[0], "width": args.output[1]}])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"side": args.side, "GB above the weights": peak * 1024 / 1e9, "cpu s": time.process_time() - start}


if __name__ == "__main__":
    main()
