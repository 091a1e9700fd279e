"""Whether the runs of one seed began with the same weights in every arm."""

from collections.abc import Iterator

from experiments.report.results_file import Arms, Record

EQUAL = "equal"
Weights = dict[str, str]
"""Type and shape, a colon and a checksum, by path."""


def sentences(arms: Arms) -> Iterator[str]:
    """Yields which arms have the initial weights of the first arm with their streams, and what the others have.

    Nothing if no record has them, as in old ones.
    """
    by_streams: dict[str, Arms] = {}
    for arm, records in arms.items():
        by_streams.setdefault(str(records[0].get("streams")), {})[arm] = records
    recorded = any(record.get("initial_weights") for records in arms.values() for record in records)
    for (first, control), *others in (list(found.items()) for found in by_streams.values() if recorded):
        alike = [first]
        for arm, records in others:
            states = _compare(control, records)
            if not states:
                yield f"Arm {arm}: not recorded for a seed of {first}."
            elif set(states.values()) == {EQUAL}:
                alike.append(arm)
            else:
                yield f"Arm {arm}, arrays against those of {first}: {'; '.join(_counted(states))}."
        if len(alike) > 1:
            yield f"Equal for every seed in {', '.join(alike)}."


def _compare(control: list[Record], records: list[Record]) -> dict[str, str]:
    """How the arrays compare, by path; what is not equal in some pair of runs of one fold and seed counts."""
    known = {(record.get("fold"), record["seed"]): record.get("initial_weights") for record in control}
    states: dict[str, str] = {}
    for record in records:
        one, other = known.get((record.get("fold"), record["seed"])), record.get("initial_weights")
        if one and other:
            states = dict.fromkeys(one | other, EQUAL) | states | dict(_differences(one, other))
    return states


def _differences(one: Weights, other: Weights) -> Iterator[tuple[str, str]]:
    for name in one | other:
        a, b = (weights.get(name, "").partition(":") for weights in (one, other))
        if not (a[0] and b[0]):
            yield name, "more" if b[0] else "missing"
        elif a != b:
            yield name, "of another shape" if a[0] != b[0] else "with other values"


def _counted(states: dict[str, str]) -> Iterator[str]:
    for state in sorted(set(states.values())):
        names = [name for name, found in states.items() if found == state]
        shown = f" ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" * (state != EQUAL)
        yield f"{len(names)} {state}{shown}"
