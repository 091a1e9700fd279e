"""The folder of a set: there whole or not at all."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.errors import UserError

NOTE = "SYNTHETIC.json"


def holds(out: Path, note: dict[str, Any]) -> bool:
    """Whether `out` holds the set that `note` describes; False if it is new or empty.

    Raises:
      UserError: it holds anything else, or is no folder.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"--out {out} is a file; expected a folder that is new or empty")
    content = sorted(path.name for path in out.iterdir())
    if not content:
        return False
    if NOTE not in content:
        raise UserError(f"--out {out} is not empty and holds no phantom: found {content[:5]}")
    differ = _differences(out / NOTE, note)
    if differ:
        raise UserError(f"--out {out} holds another phantom, which differs in {'; '.join(differ)}")
    return True


def _differences(file: Path, note: dict[str, Any]) -> list[str]:
    try:
        old, new = json.loads(file.read_text()), json.loads(json.dumps(note))
        old, new = ({**v["parameters"], "version": v["version"]} for v in (old, new))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged or not of ours: {type(error).__name__}: {error}") from error
    return [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in sorted(old | new) if old.get(k) != new.get(k)]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` when all went well and is removed when not.

    What a killed run left of it is removed first.

    Raises:
      UserError: another process is making `out`, or it cannot be written.
    """
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.partial")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there: {error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _empty(temporary)
        yield temporary
        temporary.replace(out)
    except BlockingIOError:
        raise UserError(f"--out {out}: another process is making it") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
