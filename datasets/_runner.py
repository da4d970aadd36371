"""What the prepare_*.py scripts share: a command line, several processes, a progress bar, resuming, checking.

A script lists steps; a step is one function applied to each image. Every file is written under another name and renamed
when it is whole, so a run that was broken off goes on where it stopped, and what exists is complete.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

Record = dict[str, Any]
SHOWN = 20  # problems to print; more say nothing new


@dataclass(frozen=True)
class Item:
    """One image: its name in the json, the files it is made from, the file to write (None: only a record).

    segments: what a panoptic json lists of it. link: where a link to the image goes.
    """

    name: str
    inputs: dict[str, Path]
    output: Path | None = None
    segments: Sequence[dict] = ()
    link: Path | None = None


Convert = Callable[[Item], Record | None]
Check = Callable[[Item, Record | None], None]
LabelsOf = Callable[[Item], np.ndarray]


@dataclass(frozen=True)
class Step:
    """One function applied to many images.

    convert: reads the inputs, writes the output with `save_image`, returns the image's record for the json (or None).
    check: raises ValueError unless the inputs, the output and the record agree.
    json_file: where the records go, through `assemble`; None if the step only writes images.
    problems: what was wrong already when the step was listed, such as images without labels.
    """

    title: str
    items: Sequence[Item]
    convert: Convert
    check: Check
    json_file: Path | None = None
    assemble: Callable[[list[Record]], dict] | None = None
    records_of: Callable[[dict], dict[str, Record]] | None = None
    problems: Sequence[str] = field(default_factory=tuple)


def label_step(title: str, items: Sequence[Item], labels_of: LabelsOf, problems: Sequence[str] = ()) -> Step:
    """A step that writes what `labels_of` gives for an image, (H, W), and links to the image where an item says so."""
    return Step(title, items, partial(write_labels, labels_of), partial(check_labels, labels_of), problems=problems)


def main(description: str, plan: Callable[[Path], list[Step]], arguments: Sequence[str] | None = None) -> int:
    """The command line of a script: 0 when all is made (or found right), else 1 with the problems on stderr."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--datasets",
        type=Path,
        default=Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))),
        help="folder that holds all data sets (default: DETECTRON2_DATASETS, or datasets)",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; compare what is there, image by image")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    args = parser.parse_args(arguments)
    try:
        steps = plan(args.datasets)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    problems = []
    for step in steps:
        found = [*step.problems, *(verify(step, args.jobs) if args.check else make(step, args.jobs))]
        print(f"{step.title}: {len(step.items)} images, {f'{len(found)} problems' if found else 'all right'}")
        problems += found
    for problem in problems[:SHOWN]:
        print(problem, file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"... and {len(problems) - SHOWN} more", file=sys.stderr)
    return 1 if problems else 0


def make(step: Step, jobs: int) -> list[str]:
    """Do what is not done yet; returns what went wrong. The json is written only if nothing did."""
    if step.json_file is None:
        todo = [item for item in step.items if not (item.output and item.output.exists())]
        return [
            problem
            for _, _, problem in run(partial(convert_and_check, step.convert, step.check), todo, jobs, step.title)
            if problem
        ]
    if step.json_file.exists():
        return verify(step, jobs)
    journal = step.json_file.with_name(step.json_file.name + ".partial")
    records = read_journal(journal)
    todo = [i for i in step.items if i.name not in records or (i.output and not i.output.exists())]
    problems = []
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a") as lines:
        for name, record, problem in run(partial(convert_and_check, step.convert, step.check), todo, jobs, step.title):
            if problem:
                problems.append(problem)
            else:
                records[name] = record
                lines.write(json.dumps([name, record]) + "\n")
                lines.flush()
    if not problems:
        assert step.assemble is not None
        write_json(step.assemble([records[item.name] for item in step.items]), step.json_file)
        journal.unlink()
    return problems


def verify(step: Step, jobs: int) -> list[str]:
    """Compare what is there with what it was made from; returns the differences."""
    records: dict[str, Record] = {}
    if step.json_file is not None:
        assert step.records_of is not None
        try:
            records = step.records_of(json.loads(step.json_file.read_text()))
        except FileNotFoundError:
            return [f"{step.json_file} is missing: run this script without --check."]
        except (ValueError, KeyError, TypeError) as error:
            return [f"{step.json_file} cannot be read ({error!r}): delete it and run this script again."]
    problems = []
    with_record = []
    for item in step.items:
        if step.json_file is not None and item.name not in records:
            problems.append(f"{step.json_file} lacks {item.name}: delete the file and run this script again.")
        else:
            with_record.append((item, records.get(item.name)))
    unknown = records.keys() - {item.name for item in step.items}
    problems += [f"{step.json_file} lists {name}, of which there are no files." for name in sorted(unknown)]
    for _, _, problem in run(partial(check_only, step.check), with_record, jobs, f"check {step.title}"):
        problems += [problem] if problem else []
    return problems


def run(work: Callable[[Any], Any], items: Sequence[Any], jobs: int, title: str) -> Iterator[Any]:
    """Results of `work` on all items, in order, with a progress bar."""
    bar = partial(tqdm, desc=title, total=len(items), unit="image", disable=None)
    if jobs == 1 or len(items) < 2:
        yield from bar(map(work, items))
        return
    with ProcessPoolExecutor(min(jobs, len(items))) as pool:
        yield from bar(pool.map(work, items, chunksize=max(1, min(16, len(items) // (4 * jobs)))))


def convert_and_check(convert: Convert, check: Check, item: Item) -> tuple[str, Record | None, str | None]:
    try:
        record = convert(item)
        check(item, record)
    except (ValueError, OSError) as error:
        return item.name, None, str(error)
    return item.name, record, None


def check_only(check: Check, item: tuple[Item, Record | None]) -> tuple[str, None, str | None]:
    try:
        check(*item)
    except (ValueError, OSError) as error:
        return item[0].name, None, str(error)
    return item[0].name, None, None


def write_labels(labels_of: LabelsOf, item: Item) -> None:
    link = item.link
    if link is not None and not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # one that points nowhere
        link.symlink_to(os.path.relpath(item.inputs["image"], link.parent))
    save_image(labels_of(item), item.output)


def check_labels(labels_of: LabelsOf, item: Item, record: None) -> None:
    if item.link is not None and not item.link.exists():
        raise ValueError(f"{item.link} is missing: delete {item.output} and run this script again.")
    expected = labels_of(item)
    equal_labels(read_image(item.output, "L" if expected.dtype == np.uint8 else None), expected, item.output)


def read_journal(path: Path) -> dict[str, Record]:
    """Records of an earlier run; its last line may be cut off."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            name, record = json.loads(line)
        except ValueError:
            continue
        records[name] = record
    return records


# ---- files


def need(*paths: Path) -> None:
    """FileNotFoundError for what a script cannot start without."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        root = os.getenv("DETECTRON2_DATASETS")
        raise FileNotFoundError(
            f"{', '.join(missing)} does not exist. DETECTRON2_DATASETS "
            f"{f'is {root!r}' if root else 'is not set'}; it (or --datasets) names the folder that holds the data "
            "sets, laid out as datasets/README.md shows."
        )


def pair(first: Path, second: Path, endings: tuple[str, str]) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """(name, file, file) of the names in both folders, and a problem for each that is in one only."""
    folders = [
        {path.name.removesuffix(ending): path for path in folder.glob(f"*{ending}")}
        for folder, ending in zip((first, second), endings)
    ]
    both = sorted(folders[0].keys() & folders[1].keys())
    problems = [
        f"{path} has no {there / (name + ending)}: download again, or remove it."
        for folder, other, there, ending in ((*folders, second, endings[1]), (*reversed(folders), first, endings[0]))
        for name, path in sorted(folder.items())
        if name not in other
    ]
    if not both:
        problems.append(f"{first} and {second} have no *{endings[0]} and *{endings[1]} of one name.")
    return [(name, folders[0][name], folders[1][name]) for name in both], problems


def read_image(path: Path, mode: str | None = None) -> np.ndarray:
    """Pixels as they are in the file (palette numbers, not colours); ValueError if it is broken or not of the mode."""
    try:
        with Image.open(path) as image:
            if mode is not None and image.mode != mode:
                raise ValueError(f"{path} is a picture of mode {image.mode}, expected {mode}: download it again.")
            return np.array(image)
    except (OSError, SyntaxError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise ValueError(f"{path} {what}: make or download it again.") from error


def same_size(labels: np.ndarray, label_file: Path, image_file: Path) -> None:
    """ValueError unless the (H, W, ...) labels have the size of the image, of which only the head is read."""
    try:
        with Image.open(image_file) as image:
            width, height = image.size
    except OSError as error:
        raise ValueError(f"{image_file} cannot be read ({error}): download it again.") from error
    if labels.shape[:2] != (height, width):
        raise ValueError(
            f"{label_file} is {labels.shape[1]}x{labels.shape[0]}, but {image_file} is {width}x{height}: "
            "they must be of one size; download both again."
        )


def labels_within(labels: np.ndarray, path: Path, allowed: Sequence[int] | np.ndarray) -> None:
    """ValueError if a pixel has a value that is no class."""
    wrong = np.setdiff1d(np.unique(labels), allowed)
    if wrong.size:
        raise ValueError(
            f"{path} has the values {wrong[:5].tolist()}, expected {min(allowed)} to {max(allowed)}: "
            "this is another data set, or a broken download."
        )


def equal_labels(found: np.ndarray, expected: np.ndarray, path: Path) -> None:
    """ValueError unless a file holds what it should."""
    if found.shape != expected.shape or found.dtype != expected.dtype or (found != expected).any():
        count = (found != expected).sum() if found.shape == expected.shape else "all"
        raise ValueError(
            f"{path} is not what its source gives ({count} pixels differ): delete it and run this script again."
        )


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Write an image file in one step: it is there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_name(f"{path.name}.{os.getpid()}.partial")
    Image.fromarray(pixels).save(partial_file, format={".png": "PNG", ".tif": "TIFF"}[path.suffix])
    partial_file.replace(path)


def write_json(content: dict, path: Path) -> None:
    partial_file = path.with_name(path.name + ".writing")
    partial_file.write_text(json.dumps(content))
    partial_file.replace(path)
