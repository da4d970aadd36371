"""Print the table data set x task x {prepare, train, evaluate, perfect = 100, drawn}.

python tests/miniatures/run.py [--pictures FOLDER] [--only WORD] [--two-processes]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from miniatures import (
    ROWS,
    Row,
    check_perfect,
    draw,
    evaluate,
    evaluate_perfect,
    prepare,
    registered_at,
    scores_by_command,
    small_config,
    train,
)

CELLS = ("prepare", "train", "evaluate", "perfect = 100", "drawn")


def cells_of(row: Row, root: Path, output: Path, pictures: Path, two_processes: bool) -> dict[str, str]:
    """What each cell of the row says: "ok", or the error."""
    cells: dict[str, str] = {}

    def cell(name: str, work: Callable[[], Any]) -> Any:
        try:
            value = work()
        except Exception as error:  # every cell is to be filled
            logging.getLogger(__name__).debug("%s", traceback.format_exc())
            cells[name] = f"{type(error).__name__}: {error}"
            if "-v" in sys.argv:
                traceback.print_exc()
            return None
        cells[name] = "ok"
        return value

    folder = root / row.dataset.replace(" ", "_")
    if not folder.exists():
        cell("prepare", lambda: prepare(row.dataset, folder))
    else:
        cells["prepare"] = "ok"
    with registered_at(folder):
        cfg = small_config(row, output / f"{row.dataset} {row.task}".replace(" ", "_"))
        checkpoint = cell("train", lambda: train(cfg))
        if checkpoint:
            cell("evaluate", lambda: evaluate(cfg, checkpoint))

        def perfect() -> None:
            wrong = check_perfect(evaluate_perfect(cfg))
            if wrong:
                raise RuntimeError(", ".join(wrong))

        cell("perfect = 100", perfect)
        cell("drawn", lambda: draw(cfg, pictures / f"{row.dataset} {row.task}.png".replace(" ", "_").lower()))
        if two_processes and checkpoint:

            def same() -> None:
                one, two = (scores_by_command(row, folder, cfg, checkpoint, n) for n in (1, 2))
                if not one or one != two:
                    raise RuntimeError(f"one process: {one}; two: {two}")

            cell("2 = 1 process", same)
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="where to put the pictures (default: nowhere)")
    parser.add_argument("--only", default="", help="rows whose name has this in it, such as 'ADE20K panoptic'")
    parser.add_argument("--two-processes", action="store_true", help="also score every checkpoint in two processes")
    parser.add_argument("-v", action="store_true", help="print tracebacks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    columns = [*CELLS, *(["2 = 1 process"] if args.two_processes else [])]
    table, errors = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for row in ROWS:
            if args.only.lower() not in f"{row.dataset} {row.task}".lower():
                continue
            start = time.perf_counter()
            pictures = args.pictures or Path(scratch) / "pictures"
            cells = cells_of(row, Path(scratch) / "data", Path(scratch) / "output", pictures, args.two_processes)
            marks = ["ok" if cells.get(name) == "ok" else "FAILS" if name in cells else "-" for name in columns]
            table.append([row.dataset, row.task, *marks, f"{time.perf_counter() - start:.1f} s"])
            errors += [f"{row.dataset} {row.task}, {name}: {text}" for name, text in cells.items() if text != "ok"]
    lines = [["data set", "task", *columns, "time"], *table]
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    print()
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)))
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors or not table else 0


if __name__ == "__main__":
    sys.exit(main())
