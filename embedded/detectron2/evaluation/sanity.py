"""Signs that an evaluation measured something else than a model: said in the log, next to the numbers."""

import logging
from collections.abc import Collection, Mapping


def log_coverage(
    logger: logging.Logger,
    what: str,
    num_classes: int,
    in_truth: Collection[int],
    in_predictions: Collection[int],
    ignored_share: float,
) -> None:
    """Say which part of the classes was there to be found, and found; warn when the two have nothing in common.

    Args:
        what: the task.
        in_truth, in_predictions: the classes that occur.
        ignored_share: of pixels or annotations, 0..1.
    """
    truth, predicted = set(in_truth), set(in_predictions)
    logger.info(
        "%s: %d classes; %d occur in the ground truth, %d in the predictions; %.1f%% of the ground truth is ignored.",
        what,
        num_classes,
        len(truth),
        len(predicted),
        100 * ignored_share,
    )
    if not truth:
        logger.warning("%s: the ground truth is empty, or all of it is ignored. Check labels and ignore_label.", what)
    elif predicted and not truth & predicted:
        logger.warning(
            "%s: no predicted class occurs in the ground truth (%s against %s). Check that both number classes alike.",
            what,
            sorted(predicted)[:10],
            sorted(truth)[:10],
        )
    elif len(truth) == 1 and num_classes > 1:
        logger.warning("%s: the ground truth has one class only (%d of %d).", what, min(truth), num_classes)


def warn_at_extremes(logger: logging.Logger, task: str, metrics: Mapping[str, float], main: str) -> None:
    """Warn when the main metric is exactly 0 or 100, which real models on real data do not score."""
    score = metrics.get(main)
    if score in (0.0, 100.0):
        logger.warning(
            "%s: %s is exactly %g. Real models rarely score that: check that weights were loaded, "
            "that predictions and ground truth number classes alike, and that labels are not all ignored.",
            task,
            main,
            score,
        )
