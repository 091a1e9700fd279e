"""The log of a run: what a resumed run drops, and what TensorBoard is given."""

import json
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

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


def test_a_reopened_log_ends_at_the_checkpoint(tmp_path):
    log = RunLog(tmp_path, 0, MEANS)
    log.add_steps(steps(1, 4))
    log.add_epoch({"epoch": 1, "step": 4})
    log.add_steps(steps(5, 7))
    log.close()
    with (tmp_path / STEPS).open("a") as file:
        file.write('{"step": 8, "epo')  # the process was killed here
    log = RunLog(tmp_path, 5, MEANS)
    assert [json.loads(row)["step"] for row in (tmp_path / STEPS).read_text().splitlines()] == [1, 2, 3, 4, 5]
    log.add_steps(steps(6, 8))
    row = log.add_epoch({"epoch": 2, "step": 8})
    log.close()
    assert (row["train_loss"], row["train_accuracy"]) == (6.5, 0.5)
    assert [json.loads(line) for line in (tmp_path / EPOCHS).read_text().splitlines()] == log.epochs
    assert [row["train_loss"] for row in log.epochs] == [2.5, 6.5]


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
    RunLog(tmp_path, 4, MEANS).close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert events(path)[1].step == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path):
    log = RunLog(tmp_path, 0, MEANS)
    (tmp_path / STEPS).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        log.add_steps(steps(1, 1))
    log.close()
