"""Tables that come with a dataset, as CSV."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and the named columns of every row, stripped; an absent cell is ``""``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, or the file is no CSV in UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a CSV with columns {', '.join(columns)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = header = [name.strip() for name in reader.fieldnames or ()]
            if missing := [name for name in columns if name not in header]:
                raise ValueError(f"{path}: columns {missing} are missing; found {header}")
            for row in reader:
                yield reader.line_num, {name: (row[name] or "").strip() for name in columns}
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV in UTF-8: {error}") from error


def read_patients(path: Path) -> dict[str, str]:
    """Patient of each video, from a CSV with columns ``video_id`` and ``patient_id``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, a cell is empty, or a video has two patients.
    """
    patients: dict[str, str] = {}
    for line, row in read_rows(path, ("video_id", "patient_id")):
        video, patient = row["video_id"], row["patient_id"]
        if not video or not patient:
            raise ValueError(f"{path}, line {line}: expected a video_id and a patient_id, found {row}")
        if patients.setdefault(video, patient) != patient:
            raise ValueError(f"{path}, line {line}: video {video!r} has patients {patients[video]!r} and {patient!r}")
    return patients
