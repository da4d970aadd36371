"""What an evaluation had before it: said next to the numbers, and a warning where they cannot be a model's."""

import logging
from collections.abc import Collection, Mapping


def log_coverage(
    logger: logging.Logger, task: str, truth: Collection[str], predicted: Collection[str], ignored: float
) -> None:
    """Name the classes that only the ground truth or only the predictions have.

    Args:
        truth, predicted: names of the classes that occur.
        ignored: share of the ground truth's pixels that does not count, 0..1.
    """
    missed, invented = sorted(set(truth) - set(predicted)), sorted(set(predicted) - set(truth))
    logger.info(
        "%s: %d classes in the ground truth, %d in the predictions%s%s; %.1f%% of all pixels are ignored.",
        task,
        len(set(truth)),
        len(set(predicted)),
        f"; never predicted: {', '.join(missed)}" if missed else "",
        f"; only predicted: {', '.join(invented)}" if invented else "",
        100 * ignored,
    )


def warn_at_extremes(logger: logging.Logger, task: str, scores: Mapping[str, float], main: str) -> None:
    """Warn where the main score is exactly 0 or 100: rather a mistake of set-up than a model."""
    if scores[main] in (0.0, 100.0):
        logger.warning(
            "%s: %s is exactly %g. Were the weights loaded, and do predictions and ground truth number their classes "
            "alike?",
            task,
            main,
            scores[main],
        )
