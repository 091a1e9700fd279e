"""What the configurations share, what differs between arms, and what differs between the runs of one arm."""

import json
from typing import Any, NamedTuple

from experiments.config import flatten
from experiments.report.results_file import Arms
from experiments.report.text_table import Table

ABSENT = "(absent)"
_PER_RUN = {"seed": "seed", "fold": "fold", "draw": "fold"}
"""Fields of the records that tell the runs of an arm apart, by the last part of the key."""


class ConfigDiff(NamedTuple):
    """Flattened configurations; values are JSON text.

    `within_arms` maps (arm, key) to the values found; `per_run` are the keys that hold the seed or the fold of each
    run.
    """

    shared: dict[str, str]
    between_arms: dict[str, dict[str, str]]
    within_arms: dict[tuple[str, str], list[str]]
    per_run: list[str]

    def shared_table(self) -> Table:
        """Keys on which all runs agree."""
        per_run = [(key, f"the {key.rpartition('.')[2]} of the run") for key in self.per_run]
        return Table(("key", "value"), [*per_run, *self.shared.items()], numeric=False)

    def arm_table(self, arms: Arms) -> Table:
        """Keys that differ between arms, one column per arm."""
        rows = [(key, *(values[arm] for arm in arms)) for key, values in self.between_arms.items()]
        return Table(("key", *arms), rows, numeric=False)


def compare(arms: Arms) -> ConfigDiff:
    """Sorts every key of the configurations of finished records into the parts of a `ConfigDiff`.

    A key whose last part is seed, fold or draw tells runs apart if its values are those of the records.
    """
    runs = {arm: [(record, flatten(record["config"])) for record in records] for arm, records in arms.items()}
    diff = ConfigDiff({}, {}, {}, [])
    everything = [run for found in runs.values() for run in found]
    for key in dict.fromkeys(key for _, config in everything for key in config):
        field = key.rpartition(".")[2]
        if field in _PER_RUN and all(
            config.get(key) == record.get(_PER_RUN[field], ABSENT) for record, config in everything
        ):
            diff.per_run.append(key)
            continue
        values = {arm: _values(key, [config for _, config in found]) for arm, found in runs.items()}
        diff.within_arms.update({(arm, key): found for arm, found in values.items() if len(found) > 1})
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
