"""What the configurations share, what differs between arms, and what differs between seeds of one arm."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report.records import Arms, Record

ABSENT = "(absent)"


class ConfigDiff(NamedTuple):
    """Flattened configurations; values are JSON text.

    `between_seeds` maps (arm, key) to the values found; `seed_keys` hold the seed of each run.
    """

    shared: dict[str, str]
    between_arms: dict[str, dict[str, str]]
    between_seeds: dict[tuple[str, str], list[str]]
    seed_keys: list[str]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to {"a.b.c": leaf}; lists and empty mappings are leaves."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def compare(arms: Arms, per_run: Sequence[str] = ("seed",)) -> ConfigDiff:
    """Sort every configuration key into shared, differing between arms, or holding what tells runs of an arm apart.

    Args:
        arms: Finished records.
        per_run: Fields of the records that do; keys whose last part is such a name and whose values are the field's
            are in `seed_keys`.
    """
    runs = {arm: [(record, flatten(record["config"])) for record in seeds.values()] for arm, seeds in arms.items()}
    diff = ConfigDiff({}, {}, {}, [])
    keys = dict.fromkeys(key for found in runs.values() for _, config in found for key in config)
    for key in keys:
        if _tells_runs_apart(key, per_run, [run for found in runs.values() for run in found]):
            diff.seed_keys.append(key)
            continue
        values = {arm: _values(key, [config for _, config in found]) for arm, found in runs.items()}
        diff.between_seeds.update({(arm, key): found for arm, found in values.items() if len(found) > 1})
        texts = {arm: " or ".join(found) for arm, found in values.items()}
        if len(set(texts.values())) == 1:
            diff.shared[key] = next(iter(texts.values()))
        else:
            diff.between_arms[key] = texts
    return diff


def _values(key: str, configs: list[dict[str, Any]]) -> list[str]:
    """Distinct values of `key` as JSON text, in order of first appearance."""
    texts = (json.dumps(c[key], sort_keys=True, ensure_ascii=False) if key in c else ABSENT for c in configs)
    return list(dict.fromkeys(texts))


def _tells_runs_apart(key: str, per_run: Sequence[str], runs: list[tuple[Record, dict[str, Any]]]) -> bool:
    name = key.rpartition(".")[2]
    return name in per_run and all(config.get(key) == record[name] for record, config in runs)
