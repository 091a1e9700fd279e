"""The log of a run: what a resumed run drops, and what TensorBoard is given."""

import json
import os
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments.errors import UserError
from experiments.run_log import EPOCHS, STEPS, RunLog
from experiments.tensorboard import Scalars

MEANS = ("loss", "accuracy")


def events(path: Path) -> list[Event]:
    """The records of an event file: length, its checksum, content, its checksum."""
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack_from("<Q", content)
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def steps(first: int, last: int) -> list[dict]:
    return [{"step": t, "epoch": 1 + (t - 1) // 4, "loss": float(t), "accuracy": 0.5} for t in range(first, last + 1)]


def written(folder: Path) -> dict:
    """A log of seven steps, and what a checkpoint of the fifth keeps of it."""
    log = RunLog(folder, 0, MEANS)
    log.add_steps(steps(1, 4))
    log.add_epoch({"epoch": 1, "step": 4})
    log.add_steps(steps(5, 5))
    saved = json.loads(json.dumps(log.position()))
    log.add_steps(steps(6, 7))
    log.close()
    return saved


def numbers(path: Path) -> list[int]:
    return [json.loads(row)["step"] for row in path.read_text().splitlines()]


def finished(folder: Path, saved: dict) -> list[float]:
    """The mean losses of the epochs of a log that is reopened at the checkpoint and goes on."""
    log = RunLog(folder, 5, MEANS, saved)
    log.add_steps(steps(6, 8))
    log.add_epoch({"epoch": 2, "step": 8})
    log.close()
    assert [json.loads(line) for line in (folder / EPOCHS).read_text().splitlines()] == log.epochs
    return [row["train_loss"] for row in log.epochs]


def test_a_reopened_log_ends_at_the_checkpoint(tmp_path):
    saved = written(tmp_path)
    with (tmp_path / STEPS).open("a") as file:
        file.write('{"step": 8, "epo')  # the process was killed here
    RunLog(tmp_path, 5, MEANS, saved).close()
    assert numbers(tmp_path / STEPS) == [1, 2, 3, 4, 5]
    assert finished(tmp_path, saved) == [2.5, 6.5]
    assert numbers(tmp_path / STEPS) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", [STEPS, EPOCHS])
@pytest.mark.parametrize("damage", ["empty", "cut", "twice", "changed", "lost", "pipe", "folder"])
def test_a_damaged_log_is_set_aside_and_changes_no_mean(tmp_path, name, damage):
    saved, path = written(tmp_path), tmp_path / name
    content = path.read_text()
    path.unlink()
    texts = {
        "empty": "",
        "cut": content[:20],
        "twice": content[:60] + content,
        "changed": content.replace("0.5", "0.4"),
    }
    if damage in texts:
        path.write_text(texts[damage])
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage == "folder":
        path.mkdir()
    with pytest.warns(UserWarning, match=rf"{name} is damaged .*; it is set aside as "):
        assert finished(tmp_path, saved) == [2.5, 6.5]
    assert (tmp_path / f"{name}.corrupt").exists() == (damage != "lost")
    assert numbers(tmp_path / STEPS)[-4:] == [5, 6, 7, 8]


def test_a_checkpoint_without_the_log_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected the log in the checkpoint of step 5, found one of an older version"):
        RunLog(tmp_path, 5, MEANS)


def test_scalars_for_tensorboard(tmp_path):
    scalars = Scalars(tmp_path / "tensorboard", 5)
    scalars.add({"val_loss": 0.25, "gates/s1/mean": 0.5}, 8)
    (path,) = (tmp_path / "tensorboard").iterdir()
    version, start, row = events(path)  # written before it is closed
    scalars.close()
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    assert row.step == 8
    assert {value.tag: value.simple_value for value in row.summary.value} == {
        "val_loss": 0.25,
        "gates/s1/mean": 0.5,
    }


def test_what_was_logged_up_to_the_checkpoint_stays_visible(tmp_path):
    RunLog(tmp_path, 4, MEANS, {"bytes": 0, "crc32": 0, "epochs": [], "steps": []}).close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert events(path)[1].step == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path):
    log = RunLog(tmp_path, 0, MEANS)
    (tmp_path / STEPS).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        log.add_steps(steps(1, 1))
    log.close()
