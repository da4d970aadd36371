"""What is done with results: printed for pasting, compared with what was expected, flattened for loggers."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics as lines to paste into a table. Those of single classes ("AP-person") are left out."""
    logger = logging.getLogger(__name__)
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: Any, results: Mapping[str, Any]) -> bool:
    """Compare with TEST.EXPECTED_RESULTS, a list of [task, metric, value, tolerance].

    Returns:
        True when all are as expected (or none is given); otherwise the program ends with exit code 1.
    """
    logger = logging.getLogger(__name__)
    expected = cfg.TEST.EXPECTED_RESULTS
    wrong = []
    for task, metric, value, tolerance in expected:
        actual = results.get(task, {}).get(metric)
        if actual is None or not math.isfinite(actual) or abs(actual - value) > tolerance:
            wrong.append(f"{task}/{metric} is {actual}, expected {value} +- {tolerance}")
    if wrong:
        logger.error("Results verification failed: %s\nResults: %s", "; ".join(wrong), pprint.pformat(dict(results)))
        sys.exit(1)
    if expected:
        logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """{"segm": {"AP": 1.0}} -> {"segm/AP": 1.0}, at any depth."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": leaf for inner, leaf in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
