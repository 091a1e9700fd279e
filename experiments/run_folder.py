"""The folder of one run: claimed by one process, tied to one configuration, never half-written."""

import json
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from experiments.config import flatten
from experiments.errors import UserError
from fsg_jax._files import CORRUPT, TEMPORARY, json_digest, lock, read_json, set_aside, write_json
from fsg_jax.training.checkpoint_files import read_meta

CONFIG, RESULT, LOCK = "config.json", "result.json", "lock"


class RunFolder(AbstractContextManager["RunFolder"]):
    """Claims `path` for one run until it is closed; a context manager.

    Attributes:
      path: the folder.
      run: tells its run from all others; its checkpoints carry it.
      result: the record of the run if it is finished, or None.

    Raises:
      UserError: the folder holds another run, or this one and `resume` is False, or it cannot be written.
      BusyError: another process uses the folder.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool) -> None:
        self.path, self.run = path, identity(config)
        with writing_to(path):
            path.mkdir(parents=True, exist_ok=True)
            damage = config_damage(path, config, resume)  # before the lock is written into a folder of something else
            self._lock = lock(path / LOCK)
        try:
            if damage:
                mend(path / CONFIG, damage, "a checkpoint says which run this is")
                write_json(path / CONFIG, config)
            claim_folder(path / CONFIG, config, "run", resume=resume)
            self.result = sound_record(path / RESULT, self.run)
        except BaseException:
            self.close()
            raise

    def finish(self, record: dict[str, Any]) -> dict[str, Any]:
        """Writes the record, sealed; what was written."""
        write_json(self.path / RESULT, record := seal(record))
        return record

    def close(self) -> None:
        """Lets other processes in."""
        self._lock.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class FollowerFolder(RunFolder):
    """The folder of a run for the processes that do not write it, all but the first of several."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.run, self.result = path, identity(config), None

    def finish(self, record: dict[str, Any]) -> dict[str, Any]:
        """Process 0 writes it."""
        return seal(record)

    def close(self) -> None:
        """Nothing is locked."""


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns an OSError inside into a UserError that names the output folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to the output folder {path}: {error}") from error


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the SHA-256 of all else that it holds among its facts."""
    facts = {key: value for key, value in record["facts"].items() if key != "sha256"}
    return record | {"facts": facts | {"sha256": json_digest(record | {"facts": facts})}}


def check_record(record: Any, where: object) -> dict[str, Any]:
    """The record, if it is as it was written; one without a digest, from an older version, is taken as it is.

    Raises:
      ValueError: it is not, and `where` it is.
    """
    facts = record.get("facts") if isinstance(record, dict) else None
    if not isinstance(facts, dict) or ("sha256" in facts and seal(record) != record):
        raise ValueError(f"{where} is damaged: expected a record that agrees with its facts.sha256, found another")
    return record


def sound_record(file: Path, run: str | None) -> dict[str, Any] | None:
    """The record in a file; None without one. A damaged one, or that of another run, is set aside, with a warning."""
    if not file.exists():
        return None
    try:
        record = check_record(read_json(file), file)
        if run not in (None, identity(record.get("config", {}))):
            raise ValueError(f"{file} is damaged: expected the record of this run, found that of another")
    except ValueError as error:
        mend(file, str(error), "the run is finished again from its checkpoint")
        return None
    return record


def mend(file: Path, damage: str, how: str) -> None:
    """Sets a damaged file aside, with a warning that says how it is mended."""
    aside = f"it is set aside as {set_aside(file)}" if file.exists() else "it is lost"
    warnings.warn(f"{damage}; {aside}, and {how}", stacklevel=3)


EXECUTION = {
    *("data.workers", "data.threads", "data.resident", "data.cache"),
    *("train.dispatch", "train.fsdp", "train.log_every", "train.keep_last"),
    *("train.checkpoint_every", "train.checkpoint_every_seconds"),
}
"""Settings of how a run is carried out, not of what it computes; they may differ when it is resumed."""


LATER: dict[str, Any] = {"data.image_size": None, "model.pretrained": None, "model.pretrained_digest": None}
LATER |= {"model.pretrained_part": "backbone", "model.widths": [], "model.gate_placement": "branch"}
LATER |= {"model.output_gate": None, "model.dim": None, "model.num_heads": None}
LATER |= {"optimizer.halve_every": 25.0, "optimizer.nesterov": True}
LATER |= {"train.validate_every": 1, "train.checkpoint_every_seconds": 0.0}
"""Settings that the runs of older versions lack, and what those runs did."""


def identity(config: dict[str, Any]) -> str:
    """A digest of what a run computes, the same for configurations that differ in `EXECUTION` alone."""
    kept = {key: value for key, value in flatten(config).items() if key not in EXECUTION}
    return json_digest({key: value for key, value in kept.items() if key not in LATER or value != LATER[key]})


def holds(file: Path, config: dict[str, Any]) -> bool:
    """Whether `file`, which is written first into its folder, is there with this configuration.

    Raises:
      UserError: it has another one, whose differing keys are named, or the folder holds other files only.
      ValueError: it is damaged.
    """
    if not file.exists():
        if others := sorted(p.name for p in file.parent.iterdir() if _is_other(p)):
            raise UserError(f"{file.parent}: expected an empty folder or {file.name} in it, found {others[:5]}")
        return False
    if differ := differences(read_json(file), config):
        listed = [f"{key}: {old!r} there, {new!r} now" for key, (old, new) in differ.items()]
        raise UserError(f"{file.parent} holds another run; the configurations differ in " + "; ".join(listed))
    return True


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The values of two configurations by key, where they differ in what decides the result."""
    one, other = flatten(old), flatten(json.loads(json.dumps(new)))
    pairs = {key: (one.get(key, LATER.get(key)), other.get(key, LATER.get(key))) for key in sorted(one | other)}
    return {key: pair for key, pair in pairs.items() if key not in EXECUTION and pair[0] != pair[1]}


def _is_other(path: Path) -> bool:
    return path.name != LOCK and path.suffix != TEMPORARY and f"{CONFIG}{CORRUPT}" not in path.name


def config_damage(run: Path, config: dict[str, Any], resume: bool) -> str:
    """What is wrong with the configuration of the folder of a run, if it is damaged or lost: "" if nothing is.

    What tells a damaged configuration from another one is a sound checkpoint, which knows its run.

    Raises:
      UserError, ValueError: as `holds`, where no checkpoint says that this is the run, or `resume` is False.
    """
    try:
        holds(run / CONFIG, config)
    except (UserError, ValueError) as error:
        if not (resume and any(_is_of(identity(config), path) for path in (run / "checkpoints").glob("*"))):
            raise
        return str(error)
    return ""


def _is_of(run: str, checkpoint: Path) -> bool:
    try:
        return read_meta(checkpoint)["extra"].get("run") == run
    except (OSError, ValueError):
        return False


def claim_folder(file: Path, config: dict[str, Any], what: str, *, resume: bool) -> None:
    """Ties the folder of `file` to `config`, which `file` then holds.

    Raises:
      UserError: the folder holds something else, or this and `resume` is False; `what` says what it is.
    """
    with writing_to(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not holds(file, config):
            write_json(file, config)
        elif not resume:
            raise UserError(
                f"{file.parent} already holds this {what}; add --resume to continue it, or choose another --out"
            )
