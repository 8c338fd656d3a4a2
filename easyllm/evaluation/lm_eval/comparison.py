"""Two models on the items of one task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def compared(trained: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """For each metric the ``difference`` of the means with the standard error of paired items, and
    the items that became better and worse, by ``doc_id``."""
    found: dict[str, Any] = {"metrics": {}, "better": {}, "worse": {}}
    for metric, values in trained["metrics"].items():
        name, _, kept = metric.partition("/")
        mine, theirs = (_by_item(result, kept or "none") for result in (trained, before))
        differences = {
            item: float(mine[item][name]) - float(theirs[item][name])
            for item in mine
            if item in theirs and _is_number(mine[item].get(name))
            and _is_number(theirs[item].get(name))
        }  # fmt: skip
        found["metrics"][metric] = {
            "trained": values["value"], "baseline": before["metrics"][metric]["value"],
            "difference": values["value"] - before["metrics"][metric]["value"],
            "stderr": _stderr(list(differences.values())),
        }  # fmt: skip
        found["better"][metric] = [item for item, value in differences.items() if value > 0]
        found["worse"][metric] = [item for item, value in differences.items() if value < 0]
    return found


def _by_item(result: Mapping[str, Any], kept: str) -> dict[str, Mapping[str, Any]]:
    """The samples of one of the filters that take an answer out of what the model wrote."""
    tasks = {sample["task"] for sample in result["samples"]}
    return {
        str(sample["doc_id"]) if len(tasks) == 1 else f"{sample['task']} {sample['doc_id']}": sample
        for sample in result["samples"]
        if sample["filter"] == kept
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _stderr(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
