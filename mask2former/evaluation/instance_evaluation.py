"""Mask AP for data sets whose things are scattered among the classes, as in ADE20K's panoptic form."""

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator


class InstanceSegEvaluator(COCOEvaluator):
    """COCOEvaluator without the demand that things are the classes 0, 1, 2, ...

    A panoptic model numbers things and stuff together: of ADE20K's 150 classes 100 are things, from class 7 to 147.
    COCOEvaluator wants them counted from 0, so predictions are renumbered on their way to it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        things = self._metadata.get("thing_dataset_id_to_contiguous_id")
        self._rank = None if things is None else {label: i for i, label in enumerate(sorted(things.values()))}
        if self._rank is not None:
            self._metadata = counted_from_zero(self._metadata, self._rank)

    def _eval_predictions(self, predictions: Sequence[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        if self._rank is not None:
            predictions = Renumbered(predictions, self._renumbered)
        super()._eval_predictions(predictions, img_ids=img_ids)

    def _renumbered(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self._rank is not None
        for entry in entries:
            assert entry["category_id"] in self._rank, (
                f"class {entry['category_id']} was predicted, which is not among the things of "
                f"'{self._metadata.name}': {sorted(self._rank)}"
            )
        return [{**entry, "category_id": self._rank[entry["category_id"]]} for entry in entries]


class Renumbered(Sequence[dict[str, Any]]):
    """Predictions with other classes, made when they are read: detectron2 may keep them on disk.

    Args:
        predictions: {"image_id", "instances"} of each image.
        renumber: makes the new instances of an image.
    """

    def __init__(
        self,
        predictions: Sequence[dict[str, Any]],
        renumber: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    ) -> None:
        self._predictions = predictions
        self._renumber = renumber

    def __len__(self) -> int:
        return len(self._predictions)

    def __getitem__(self, index: Any) -> Any:
        image = self._predictions[index]
        return {**image, "instances": self._renumber(image["instances"])}


def counted_from_zero(metadata: Metadata, rank: dict[int, int]) -> Metadata:
    """A copy of `metadata` in which the thing class c is `rank[c]`, and thing_classes names the things only.

    thing_classes may name things only, or all classes.
    """
    facts = dict(vars(metadata))
    to_class = facts["thing_dataset_id_to_contiguous_id"]
    facts["thing_dataset_id_to_contiguous_id"] = {dataset: rank[label] for dataset, label in to_class.items()}
    names = facts.get("thing_classes")
    if names is not None:
        # COCO's tables list classes by the ids of the json file.
        labels = [to_class[dataset] for dataset in sorted(to_class)]
        facts["thing_classes"] = [names[rank[c] if len(names) == len(rank) else c] for c in labels]
    return Metadata(**facts)
