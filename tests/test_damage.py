"""A folder of an interrupted run is damaged in every way: the run ends as if nothing had happened, or says why not."""

import itertools
import json
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

import pytest
import tiny

from experiments.config import BaseExperiment
from experiments.errors import EXIT_CODES
from experiments.train import train

EXPERIMENT = tiny.digits(train={"epochs": 4, "checkpoint_every": 3, "test_on": "best"})
ARM = "fsg_gr"
COMPARED = ("history", "gates", "test", "validation", "initial_weights", "config")

# Of several failed reads TensorStore reports the later ones to an event loop that is closed by then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Damage = Callable[[Path], None]


class StopError(Exception):
    """Ends a run after an epoch."""


def interrupted(experiment: BaseExperiment, out: Path, *, arm: str = ARM, seed: int = 0, epoch: int = 3) -> Path:
    """The folder of a run that was stopped after an epoch; the row of one more step is in its log."""

    def stop(rows: list[dict]) -> None:
        if rows[0]["epoch"] == epoch:
            raise StopError

    with pytest.raises(StopError):
        train(experiment, arm, seed, out, on_epoch=stop)
    with (out / "steps.jsonl").open("a") as file:
        file.write('{"step": 7, "epoch": 4, "loss": 1.0, "acc')
    return out


def hang(*_: object) -> None:
    raise KeyboardInterrupt


class Folders:
    """What is damaged, copies of it, and how the runs end that nobody disturbs."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        self.straight = train(EXPERIMENT, ARM, 0, root / "straight")
        self.finished = root / "straight"
        self.stopped = interrupted(EXPERIMENT, root / "stopped")
        self.other_result = root / "other.json"

    @cached_property
    def others(self) -> tuple[Path, Path, Path]:
        """Runs of another seed, whose result is `other_result`, of another arm, and after the first epoch."""
        seed = interrupted(EXPERIMENT, self.root / "seed", seed=1)
        train(EXPERIMENT, ARM, 1, seed, resume=True)
        shutil.move(seed / "result.json", self.other_result)
        arm = interrupted(EXPERIMENT, self.root / "arm", arm="fsg")
        return seed, arm, interrupted(EXPERIMENT, self.root / "early", epoch=1)

    def outcome(self, base: Path, damage: Damage) -> str:
        """``same`` or the error, after `damage` to a copy of `base`, from which the run was resumed."""
        out = self.root / f"run-{self.count}"
        self.count += 1
        shutil.copytree(base, out)
        damage(out)
        signal.signal(signal.SIGALRM, hang)
        signal.alarm(30)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                record = train(EXPERIMENT, ARM, 0, out, resume=True)
        except tuple(EXIT_CODES) as error:
            return f"error: {error}".replace(str(out), "RUN")
        except BaseException as error:
            return f"TRACEBACK {type(error).__name__}: {error}".replace(str(out), "RUN")
        finally:
            signal.alarm(0)
            shutil.rmtree(out, ignore_errors=True)
        if differ := [key for key in COMPARED if record[key] != self.straight[key]]:
            return f"silently wrong: {differ}"
        return "same"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("damage"))


def edit(name: str, change: Callable[[bytes], bytes], out: Path) -> None:
    (out / name).write_bytes(change((out / name).read_bytes()))


def flip(seed: int, content: bytes) -> bytes:
    at = random.Random(seed).randrange(8 * len(content) or 1)
    return content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :] if content else b"\1"


def instead(name: str, make: Callable[[Path], object], out: Path) -> None:
    (out / name).unlink()
    make(out / name)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "twice": lambda content: content * 2,
    "garbage": lambda content: bytes(range(256)),
    "flip": partial(flip, 0),
    "flip another": partial(flip, 1),
}


def to_any_file(base: Path) -> Iterator[tuple[str, Damage]]:
    """Every file of the folder, changed, removed, or a pipe."""
    names = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
    for name in (name for name in names if "tensorboard" not in name and name != "lock"):
        for kind, change in CHANGES.items():
            if "/state/" not in name or kind in ("cut", "flip"):  # arrays, of which each failed read leaves traces
                yield f"{name} {kind}", partial(edit, name, change)
        yield f"{name} removed", lambda out, name=name: (out / name).unlink()
        yield f"{name} a pipe", partial(instead, name, os.mkfifo)
        yield f"{name} a folder", partial(instead, name, Path.mkdir)


def rows(change: Callable[[list[str]], list[str]]) -> Callable[[bytes], bytes]:
    return lambda content: "".join(change(content.decode().splitlines(keepends=True))).encode()


def to_logs() -> Iterator[tuple[str, Damage]]:
    """Rows that are missing, twice, exchanged, changed, or of another type."""
    for name, count in (("steps.jsonl", 6), ("epochs.jsonl", 3)):
        for i in range(count):
            yield f"{name} without row {i}", partial(edit, name, rows(lambda r, i=i: r[:i] + r[i + 1 :]))
            yield f"{name} row {i} twice", partial(edit, name, rows(lambda r, i=i: [*r[: i + 1], *r[i:]]))
            yield f"{name} up to {i}", partial(edit, name, rows(lambda r, i=i: r[:i]))
            for other in ("[1]\n", "null\n", '{"step": "1"}\n', "{}\n", '{"step": 99}\n'):
                yield (
                    f"{name} row {i} {other!r}",
                    partial(edit, name, rows(lambda r, i=i, o=other: [*r[:i], o, *r[i:]])),
                )
            yield f"{name} row {i} reversed", partial(edit, name, rows(lambda r, i=i: r[:i] + r[i:][::-1]))


def to_values(base: Path) -> Iterator[tuple[str, Damage]]:
    """Every key of the files of JSON: removed, of another value."""
    for file in (base / "config.json", *base.glob("checkpoints/*/meta/metadata")):
        name, content = str(file.relative_to(base)), json.loads(file.read_text())
        for key in content:
            yield f"{name} without {key}", partial(edit, name, partial(without, key))
            yield f"{name} another {key}", partial(edit, name, partial(replaced, key))
    for step in sorted(p.name for p in base.glob("checkpoints/*")):
        name = f"checkpoints/{step}/meta/metadata"
        for value in (0.0, 1.0, None, "1", float("nan")):
            yield (
                f"{name} metric {value}",
                partial(edit, name, partial(replaced, "metrics", value={"val_accuracy": value})),
            )


def without(key: str, content: bytes) -> bytes:
    return json.dumps({k: v for k, v in json.loads(content).items() if k != key}).encode()


def replaced(key: str, content: bytes, value: object = 3) -> bytes:
    return json.dumps(json.loads(content) | {key: value}).encode()


def copy(source: Path, new: str, out: Path) -> None:
    shutil.rmtree(out / "checkpoints" / new, ignore_errors=True)
    shutil.copytree(source, out / "checkpoints" / new)


def to_checkpoints(base: Path) -> Iterator[tuple[str, Damage]]:
    """Folders of checkpoints: renamed, exchanged, lost."""
    steps = sorted((p.name for p in base.glob("checkpoints/*")), key=int)

    def rename(old: str, new: str, out: Path) -> None:
        (out / "checkpoints" / old).rename(out / "checkpoints" / new)

    def exchange(a: str, b: str, out: Path) -> None:
        for old, new in ((a, "x"), (b, a), ("x", b)):
            rename(old, new, out)

    for step in steps:
        for new in ("8", "5", "48", "99999999999", str(2**70), "0", f"0{step}", "x", f"-{step}", f"{step} copy"):
            if new not in steps:
                yield f"{step} renamed {new}", partial(rename, step, new)
                yield f"{step} copied to {new}", lambda out, s=step, n=new: copy(out / "checkpoints" / s, n, out)
        yield f"{step} lost", lambda out, s=step: shutil.rmtree(out / "checkpoints" / s)
    for a, b in itertools.pairwise(steps):
        yield f"{a} and {b} exchanged", partial(exchange, a, b)
    for name in ("99999999999", "7", "x", "6.orbax-checkpoint-tmp", ".hidden", "007"):
        yield f"an empty folder {name}", lambda out, n=name: (out / "checkpoints" / n).mkdir()
        yield f"a file {name}", lambda out, n=name: (out / "checkpoints" / n).write_text("")
    yield "all lost", lambda out: [shutil.rmtree(p) for p in (out / "checkpoints").iterdir()]
    yield "no checkpoints", lambda out: shutil.rmtree(out / "checkpoints")
    yield "config and all lost", lambda out: [(out / "config.json").unlink(), shutil.rmtree(out / "checkpoints")]


def by_other_runs(folders: Folders) -> Iterator[tuple[str, Damage]]:
    """Checkpoints and logs of a run of another seed, of another arm, of fewer epochs."""
    seed, arm, early = folders.others
    for step in sorted(p.name for p in folders.stopped.glob("checkpoints/*")):
        for other in (seed, arm):
            if (other / "checkpoints" / step).exists():
                yield f"{step} of {other.name}", partial(copy, other / "checkpoints" / step, step)
    for name in ("steps.jsonl", "epochs.jsonl"):
        yield f"older {name}", lambda out, n=name: shutil.copy(early / n, out / n)
        yield f"{name} of another seed", lambda out, n=name: shutil.copy(seed / n, out / n)


def of_one_run(folders: Folders) -> list[tuple[str, Path, Damage]]:
    """Damages to a folder of a stopped run, and to that of a finished one."""
    base, done = folders.stopped, folders.finished
    parts = (to_any_file(base), to_logs(), to_values(base), to_checkpoints(base))
    found = [(name, base, damage) for part in parts for name, damage in part]
    kinds = CHANGES.items()
    return found + [(f"finished: {kind}", done, partial(edit, "result.json", change)) for kind, change in kinds]


def table(folders: Folders) -> list[tuple[str, Path, Damage]]:
    """All damages."""
    found = [*of_one_run(folders), *((name, folders.stopped, damage) for name, damage in by_other_runs(folders))]
    other = "finished: of another seed"
    return [*found, (other, folders.finished, lambda out: shutil.copy(folders.other_result, out / "result.json"))]


LOST = "expected an empty folder or config.json in it, found "
REFUSED = {"config and all lost": LOST}
"""Damages after which nothing says that the folder is that of the run, or a checkpoint that it is sound."""


@pytest.mark.slow
def test_no_damage_is_silently_wrong(folders):
    outcomes = {name: folders.outcome(base, damage) for name, base, damage in table(folders)}
    print(len(outcomes), "damages")
    assert len(outcomes) > 300
    for name, outcome in outcomes.items():
        if name in REFUSED:
            assert REFUSED[name] in outcome, name
        else:
            assert outcome == "same", name


SOME = (
    *("checkpoints/6/meta/metadata flip", "4 lost", "epochs.jsonl without row 1", "config.json empty"),
    "finished: flip",
)


def test_some_damages(folders):
    """A part of the above."""
    found = {name: (base, damage) for name, base, damage in of_one_run(folders)}
    assert {name: folders.outcome(*found[name]) for name in SOME} == dict.fromkeys(SOME, "same")
