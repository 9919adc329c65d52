"""Lines of metrics.jsonl and timings.jsonl, before anybody counts with them: is each what a run writes?

A folder may come from a stranger, a full disk or another version. What stands in these files is looked at once, here,
so that tables, curves and pages need not doubt it. Fields of other names are let through: nothing here knows them all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star.tasks.files import shown


def whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def number(value: Any) -> bool:
    return type(value) in (int, float) and -1e300 < value < 1e300  # NaN is neither


def number_or_none(value: Any) -> bool:
    return value is None or number(value)


def triple_or_none(value: Any) -> bool:
    return value is None or fits(value, [number] * 3)


PAIRS = {"mean": [number, number], "*": [number, number]}
TIMED = ("iteration", "seconds", "tokens", "sampled_tokens_per_s", "trained_tokens_per_s")
KEPT = ("rationalized", "kept_wrong_steps", "rationalized_wrong_steps", "dropped", "truncated", "tries", "mean_tokens",
        "solved", "problems", "rationalized_problems", "distinct", "examples")  # what comes with "kept"
FORMS = dict.fromkeys(("iteration", "best", "kept", "steps", "new_tokens", "target_tokens", "trained_tokens", "ranks",
                       *KEPT), whole) | {
    "mean_tokens": number, "dropped": {"*": whole}, "said": {"*": whole},
    "accuracy": {"mean": number, "*": number}, "interval": PAIRS,
    "validation": {"mean": number, "*": number}, "validation_interval": PAIRS,
    "reward": {"mean": number, "*": number}, "pass_at": {"*": number}, "maj_at": {"*": number},
    "sources": {"*": {**dict.fromkeys(("tried", "right", "kept", "chosen", "chosen_hinted", "chosen_wrong"), whole),
                      "reward": number_or_none}},
    "judge": {"problems": whole, "auc": triple_or_none, "by_attribute": {"*": triple_or_none}, "ties": number,
              "unscored": whole},
    "seconds": {"*": number}, "tokens": {"*": number}, "use": {"*": {"*": number}},
    "sampled_tokens_per_s": number, "trained_tokens_per_s": number,
}


def fits(value: Any, form: Any) -> bool:
    """Has a value this form? Of an object each name must be there, and "*" is what all of its values are."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            all(fits(v, inner) for v in value.values()) if name == "*" else name in value and fits(value[name], inner)
            for name, inner in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and len(value) == len(form) and all(map(fits, value, form))
    return form(value)


def measured(records: Sequence[Any], path: Path) -> list[dict]:
    """The lines of a file of metrics or timings. ValueError names the first line that no run writes, and its field."""
    last, groups = -1, None
    for at, record in enumerate(records, 1):
        where = f"{path}, line {at}"
        if not isinstance(record, dict) or not whole(record.get("iteration")):
            raise ValueError(f"{where} is {shown(record)}; it must be an object with an iteration from 0 on")
        if record["iteration"] <= last:
            raise ValueError(f"{where} is of iteration {record['iteration']}, which does not follow {last}")
        last = record["iteration"]
        for name, value in record.items():
            if name in FORMS and not fits(value, FORMS[name]):
                raise ValueError(f"{where}: {shown(name)} is {shown(value)}, which no run writes")
        needed = [*KEPT * ("kept" in record), *TIMED * ("seconds" in record), *["interval"] * ("accuracy" in record)]
        if lacks := [name for name in needed if name not in record]:
            raise ValueError(f"{where} lacks {', '.join(lacks)}")
        groups = groups or record.get("accuracy")
        if "accuracy" in record and not record["accuracy"].keys() == record["interval"].keys() == groups.keys():
            raise ValueError(f"{where} has other groups than the lines before it")
    return list(records)
