"""What was dropped and noted, as CSV files beside an index."""

import csv
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from fsg_jax.endoscopy.readers.reasons import NOTES, Event

DROPPED, NOTED = "dropped.csv", "notes.csv"


def write_reports(events: Iterable[Event], out: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Writes a row for every event to `DROPPED`, or to `NOTED` if it dropped nothing; returns counts by reason."""
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    temporary = [out / f"{name}.tmp" for name in (DROPPED, NOTED)]
    with ExitStack() as stack:
        files = [
            stack.enter_context(path.open("w", newline="", encoding="utf-8", errors="backslashreplace"))
            for path in temporary
        ]
        writers = [csv.writer(file, lineterminator="\n") for file in files]
        for writer in writers:
            writer.writerow(Event._fields)
        for event in events:
            noted = event.reason in NOTES
            writers[noted].writerow(event)
            counts[noted][str(event.reason)] += 1
    for path in temporary:
        path.replace(path.with_suffix(""))
    return dict(counts[0].most_common()), dict(counts[1].most_common())
