"""What a user can get wrong: one clear line, exit code 2, and nothing left behind."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cifar_files
import numpy as np
import pytest
import tiny

import fsg_jax as fsg
from experiments.cli import AblateArgs, TrainArgs, parse
from experiments.config import Experiment, describe
from experiments.errors import run_main
from experiments.run_folder import RunFolder
from experiments.train import train

ROOT = Path(__file__).parent.parent
TRAIN = "experiments.train"


def npz(folder: Path, **change: np.ndarray) -> Path:
    np.savez(folder / "changed.npz", **cifar_files.npz_content() | change)
    return folder / "changed.npz"


def truncated(folder: Path) -> Path:
    path = cifar_files.write_archive(cifar_files.write_python(folder))
    path.write_bytes(path.read_bytes()[:3000])
    return path


def outside(folder: Path) -> Path:
    return cifar_files.write_members(folder / "cifar-100-python.tar.gz", {"../evil": b"1"})


def code(folder: Path) -> Path:
    written = cifar_files.write_python(folder)
    call = b"cposix\nsystem\n(" + cifar_files.opcodes(f"touch {folder}/trace".encode()) + b"tR."
    (written / "train").write_bytes(call)
    return written


FEW = np.zeros(0, np.int64)
BAD_DATA = {
    "missing": (lambda folder: folder / "none", r"none: expected CIFAR-100 .*, found no such file or folder"),
    "truncated": (truncated, r"python\.tar\.gz: expected a whole \.tar\.gz archive, .*: cut short or damaged"),
    "outside": (outside, r"expected only members inside 'cifar-100-python', found '\.\./evil'"),
    "code": (code, r"train: expected a pickle .*reference to posix\.system"),
    "labels": (partial(npz, train_fine=np.full(30, 100)), "fine labels: expected 0 to 99, found 100"),
    "shape": (
        partial(npz, train_images=np.zeros((30, 8, 8, 3), np.uint8)),
        r"images: .*, found \(30, 8, 8, 3\)",
    ),
    "dtype": (partial(npz, train_images=np.zeros((30, 32, 32, 3))), "images: expected uint8, found float64"),
    "empty": (
        partial(npz, train_images=np.zeros((0, 32, 32, 3), np.uint8), train_fine=FEW, train_coarse=FEW),
        r"images: expected shape .*, found \(0, 32, 32, 3\)",
    ),
    "test labels": (partial(npz, test_fine=np.full(10, 100)), "fine labels: expected 0 to 99, found 100"),
}


def refused(capsys: pytest.CaptureFixture, experiment: Experiment, out: Path, **kwargs: Any) -> str:
    """The one line on standard error with which a run exits with code 2."""
    with pytest.raises(SystemExit) as exited:
        run_main(lambda: train(experiment, **{"arm": "fsg_gr", "seed": 0, "out": out} | kwargs) and None)
    assert exited.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def assert_matches(pattern: str, line: str) -> None:
    assert re.search(pattern, line), line


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data(tmp_path, capsys, kind):
    write, message = BAD_DATA[kind]
    experiment = tiny.shrunk("cifar100_vit_tiny", tmp_path / "good")
    experiment = tiny.change(experiment, data={"path": write(tmp_path)})
    assert_matches(message, refused(capsys, experiment, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "trace").exists()


def test_wrong_checksum(tmp_path, capsys):
    experiment = tiny.change(tiny.shrunk("cifar100_vit_tiny", tmp_path), data={"checksum": True})
    assert_matches(r"cifar100\.npz: expected sha256 ", refused(capsys, experiment, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


BAD_VALUES = [
    ("data", "validation", 1438, "data.validation: expected an integer from 1 to 1437, found 1438"),
    ("data", "validation", 0, "data.validation: expected an integer >= 1, found 0"),
    ("data", "num_train", 1239, "data.num_train: expected an integer from 1 to 1238, found 1239"),
    ("data", "name", "mnist", "data.name: expected one of 'digits', 'cifar100', 'kvasir_crops', found 'mnist'"),
    (
        "data",
        "augment",
        ("crop", "flop"),
        "'mixup', 'cutmix', 'mixup_or_cutmix', found 'flop'",
    ),
    ("data", "workers", -1, "data.workers: expected an integer >= 0, found -1"),
    (
        "model",
        "name",
        "vit_tin",
        "model.name: expected one of 'vit_tiny', 'vit_small', 'vit_base', found 'vit_tin' (did you mean 'vit_tiny'?)",
    ),
    ("model", "patch_size", 3, "patch_size"),
    ("gate", "init", "ones", "gate.init: expected one of 'xavier', 'he', 'constant', 'open', found 'ones'"),
    ("gate", "every", 0, "gate.every: expected an integer >= 1, found 0"),
    ("gate", "learning_rate", float("nan"), "gate.learning_rate: expected a finite number >= 0, found nan"),
    ("gate", "clip", -1.0, "gate.clip: expected a finite number > 0, found -1.0"),
    ("optimizer", "name", "adam", "optimizer.name: expected one of 'sgd', 'adamw', found 'adam'"),
    ("optimizer", "warmup_epochs", 2.0, "optimizer.warmup_epochs: expected less than train.epochs, 2, found 2.0"),
    ("optimizer", "momentum", 1.0, "optimizer.momentum: expected a number in [0, 1), found 1.0"),
    ("train", "batch_size", 129, "train.batch_size: expected an integer from 1 to 128, found 129"),
    ("train", "accumulate", 3, "train.batch_size: expected a multiple of train.accumulate, 3, found 64"),
    ("train", "epochs", 0, "train.epochs: expected an integer >= 1, found 0"),
    ("train", "ema_decay", 1.0, "train.ema_decay: expected a number in [0, 1), found 1.0"),
    ("train", "ema_decay", 0.0, "train.ema_decay: expected a finite number > 0, found 0.0"),
    ("train", "epochs", True, "train.epochs: expected int, found True"),
    ("optimizer", "learning_rate", "high", "optimizer.learning_rate: expected float, found 'high'"),
    ("data", "augment", "crop", "data.augment: expected tuple, found 'crop'"),
    ("train", "dtype", "float8", "train.dtype: expected one of 'float32', 'bfloat16', found 'float8'"),
]


@pytest.mark.parametrize(("part", "key", "value", "message"), BAD_VALUES)
def test_bad_value(tmp_path, capsys, part, key, value, message):
    line = refused(capsys, tiny.change(tiny.digits(), **{part: {key: value}}), tmp_path / "out")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_bad_arm_and_seed(tmp_path, capsys):
    line = refused(capsys, tiny.digits(), tmp_path / "out", arm="fgs")
    assert "unknown arm 'fgs' (did you mean 'fsg'?); there are baseline, fsg, fsg_gr, fsg_joint, l0, se" in line
    assert "seed: expected an integer from 0 to 4294967295, found -1" in refused(
        capsys, tiny.digits(), tmp_path / "out", seed=-1
    )
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert f"cannot write to the output folder {out}: " in refused(capsys, tiny.digits(), out)
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_of_something_else_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "lock").write_text("mine")
    (tmp_path / "thesis.tex").write_text("mine")
    line = refused(capsys, tiny.digits(), tmp_path, resume=True)
    assert f"{tmp_path}: expected an empty folder or config.json in it, found ['thesis.tex']" in line
    (tmp_path / "config.json").write_text("[1]")
    assert f"{tmp_path}/config.json is damaged: expected a JSON object, found " in refused(
        capsys, tiny.digits(), tmp_path
    )
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 768}))
    assert "hidden_size: 768 there, None now" in refused(capsys, tiny.digits(), tmp_path)
    assert (tmp_path / "lock").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "lock", "thesis.tex"]


def test_folder_of_another_run(tmp_path, capsys):
    RunFolder(tmp_path, describe(tiny.digits(), "fsg_gr", 0), resume=False).close()
    before = (tmp_path / "config.json").read_text()
    longer = tiny.digits(train={"epochs": 3})
    line = refused(capsys, longer, tmp_path, seed=1, resume=True)
    assert line.endswith("the configurations differ in seed: 0 there, 1 now; train.epochs: 2 there, 3 now")
    assert "already holds this run; add --resume" in refused(capsys, tiny.digits(), tmp_path)
    assert (tmp_path / "config.json").read_text() == before


BAD_OPTIONS = [
    (["--train.epoch", "2"], ["Unrecognized options: --train.epoch", "--train.epochs"]),
    (["--train.epochs", "two"], ["--train.epochs", "'two'"]),
    (["--model.patch-size", "4"], ["Unrecognized", "--model.patch-size"]),
    (["--model.name", "vit_tiny"], ["invalid choice 'vit_tiny' for argument '--model.name'"]),
    (["--gate.init", "ones"], ["invalid choice 'ones' for argument '--gate.init'"]),
]


@pytest.mark.parametrize(("options", "messages"), BAD_OPTIONS)
def test_bad_option(capsys, options, messages):
    with pytest.raises(SystemExit) as exited:
        parse(TrainArgs, TRAIN, ["digits", "--out", "x", *options])
    assert exited.value.code == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert all(message in error for message in messages), error


def test_options_are_what_they_say():
    options = "--out x --data.path /cifar --model.depth 3 --arms fsg_gr se --data.no-checksum"
    args = parse(AblateArgs, "experiments.ablate", ["cifar100_vit_tiny", *options.split()])
    assert (args.arms, args.out, args.experiment.data.path) == (("fsg_gr", "se"), Path("x"), Path("/cifar"))
    assert (args.experiment.model.depth, args.experiment.data.checksum) == (3, False)
    with pytest.raises(
        ValueError, match=r"unknown configuration 'digit' \(did you mean 'digits'\?\); there are cifar100"
    ):
        parse(TrainArgs, TRAIN, ["digit", "--out", "x"])


@pytest.mark.slow
def test_a_folder_in_use_is_refused(tmp_path):
    argv = ["digits", "--out", str(tmp_path), "--data.num-train", "128", "--resume"]
    args = parse(TrainArgs, TRAIN, argv)
    with RunFolder(tmp_path, describe(args.experiment, args.arm, args.seed), resume=False):
        second = subprocess.run([sys.executable, "-m", TRAIN, *argv], cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 2
    assert second.stderr == f"error: {tmp_path} is in use by another process\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "lock"]


def test_a_checkpoint_that_does_not_fit_is_refused_at_once(tmp_path):
    with pytest.raises(fsg.CheckpointError, match=rf"{tmp_path}: no space left .*1000000000\.0 MB are needed, "):
        fsg.Checkpointer(tmp_path)._check_space(10**15)


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


def limited(size: int, argv: list[str]) -> subprocess.CompletedProcess:
    """A run none of whose files may grow beyond `size` bytes; more fails as on a full disk, with another errno."""
    command = [sys.executable, "-c", LIMITED, str(size), *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_stopped_by_a_full_disk_goes_on_when_there_is_space(tmp_path):
    """Too little room for the configuration, for the log, for the first checkpoint; then enough."""
    tiny.shrunk("cifar100_vit_tiny", tmp_path)
    out = tmp_path / "out"
    argv = [
        *("cifar100_vit_tiny", "--out", str(out), "--data.path", str(tmp_path), "--data.no-checksum", "--resume"),
        *("--data.validation", "10", "--data.augment", "--model.depth", "1", "--model.patch-size", "16"),
        *("--train.epochs", "2", "--train.batch-size", "1", "--optimizer.warmup-epochs", "1", "--train.log-every", "1"),
    ]
    folder, checkpoints = "to the output folder", "checkpoints to"
    for limit, what, found in (
        (500, folder, {"lock"}),
        (2000, folder, {"config.json", "steps.jsonl"}),
        (200_000, checkpoints, {"checkpoints"}),
    ):
        stopped = limited(limit, argv)
        assert stopped.returncode == 2, stopped.stderr
        assert f"error: cannot write {what} {out}" in stopped.stderr
        assert {p.name for p in out.iterdir()} >= found
        assert not (out / "result.json").exists()
    done = limited(10**9, argv)
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in json.loads((out / "result.json").read_text())["history"]] == [1, 2]
    assert [json.loads(row)["step"] for row in (out / "steps.jsonl").read_text().splitlines()] == list(range(1, 41))
