"""What importing the package costs on top of importing PyTorch, in fresh processes.

python benchmarks/startup.py
"""

import subprocess
import sys
import time

from common import alternate, arguments, report


def main() -> None:
    args = arguments(__doc__).parse_args()

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    start = time.perf_counter()
    run("pass")
    empty = time.perf_counter() - start
    sides = {"torch": lambda: run("import torch"), "mask2former": lambda: run("import torch, mask2former")}
    measured = alternate(sides, args.repeats)
    rows = [{"import": name, "wall s": times["wall"] - empty} for name, times in measured.items()]
    beyond = measured["mask2former"]["wall"] - measured["torch"]["wall"]
    report("fresh processes", [*rows, {"import": "mask2former beyond torch", "wall s": beyond}], args.json)


if __name__ == "__main__":
    main()
