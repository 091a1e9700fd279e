"""How processes end: saves are waited for, children end with their parent, signals stop a run, streams are closed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Mlp, new_state

import fsg_jax as fsg
from experiments.stop import SIGNALS, StopRequest
from fsg_jax.training.checkpoint_files import checksums, seal, to_leaves, write_plain

ROOT = Path(__file__).parents[1]
SAVE = """
import sys
sys.path.insert(0, "tests")
import fsg_jax as fsg
from toy import new_state
"""


def script(text: str, *args: object, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SAVE + textwrap.dedent(text), *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_interpreter_waits_for_a_save(tmp_path):
    done = script("fsg.Checkpointer(sys.argv[1]).save(new_state(), extra={'a': 1})", tmp_path / "a")
    assert done.returncode == 0
    state = new_state()
    restored = fsg.Checkpointer(tmp_path / "a").restore(state)
    assert (restored.step, restored.extra) == (0, {"a": 1})
    jax.tree.map(np.testing.assert_array_equal, restored.state.variables, state.variables)


def test_a_checkpoint_written_without_orbax_is_one(tmp_path):
    """As at the exit of Python 3.12, where no thread can be started."""
    state = new_state(Mlp(batch_norm=True), ema_decay=0.9)
    state = replace(state, variables=jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.variables))
    leaves = to_leaves(state)
    meta = {"step": 0, "data": None, "extra": {"a": 1}, "metrics": {"b": 0.5}, "crc32": checksums(leaves)}
    tmp_path.joinpath("a").mkdir()
    write_plain(tmp_path / "a" / "0", leaves, seal(meta))
    checkpointer = fsg.Checkpointer(tmp_path / "a", best="b")
    restored = checkpointer.restore(state)
    assert (checkpointer.best_step(), restored.extra) == (0, {"a": 1})
    jax.tree.map(np.testing.assert_array_equal, restored.state.variables, state.variables)
    (tmp_path / "a" / "0" / "arrays.npz").write_bytes(b"damaged")
    with (
        pytest.warns(UserWarning, match="0 is damaged"),
        pytest.raises(fsg.CheckpointError, match="nothing to restore"),
    ):
        checkpointer.restore(state)


FAILS = """
import resource
checkpointer = fsg.Checkpointer(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
checkpointer.save(new_state())
"""


def test_a_save_that_fails_at_the_exit_is_not_a_success(tmp_path):
    """No file may grow any more, as on a full disk."""
    done = script(FAILS, tmp_path / "a")
    assert done.returncode == 1
    assert f"error: cannot write checkpoints to {tmp_path}/a" in done.stderr
    assert "0" not in os.listdir(tmp_path / "a")


LOST = """
from pathlib import Path
checkpointer = fsg.Checkpointer(sys.argv[1])
Path(sys.argv[1]).rmdir()
Path(sys.argv[1]).write_text("")
checkpointer.save(new_state())
"""


def test_a_folder_that_cannot_be_written_any_more_ends_the_process_at_once(tmp_path):
    began = time.monotonic()
    done = script(LOST, tmp_path / "a")
    assert done.returncode == 1
    # Which of Orbax's threads meets the file first differs: "Not a directory", or "No such file or directory".
    assert f"CheckpointError: cannot write checkpoints to {tmp_path}/a: [Errno 2" in done.stderr
    assert time.monotonic() - began < 100  # Orbax's threads wait for 300 seconds


PARENT = """
import sys
from fsg_jax.data.batches import in_order
from fsg_jax.data.loader import Loader
from test_exits import read

if __name__ == "__main__":
    batches = iter(Loader(in_order(64, 2), read, workers=2))
    print(*{pid for _ in range(4) for pid in next(batches)["pid"].tolist()}, flush=True)
    sys.stdin.read()
"""


def read(rows):
    """A batch that tells which process has read it."""
    import numpy as np

    return {"pid": np.full(len(rows), os.getpid())}


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        workers = set(map(int, parent.stdout.readline().split()))
        assert len(workers - {parent.pid}) == 2
        parent.kill()
        parent.wait()
        assert parent.stdout.read() == b""  # until nobody holds the other end any more


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_a_request_to_stop(number):
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        for _ in range(1000):
            if request.requested:
                break
            time.sleep(0.001)
        assert request.requested
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_an_ignored_signal_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), number)
            assert not request.requested
    finally:
        signal.signal(number, before)


def shell(line: str, **env: str) -> subprocess.CompletedProcess:
    command = line.replace("python", sys.executable)
    return subprocess.run(
        command, shell=True, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120
    )


BAD = "python -m experiments.train digits --train.epochs 0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "env", "stderr"),
    [
        (f"{BAD} --out {{}}/x 2>&-", {}, ""),
        (f"{BAD} --out {{}}/x >&- <&-", {}, "error: train.epochs: expected an integer >= 1"),
        (f"{BAD} --out {{}}/\N{LATIN SMALL LETTER E WITH ACUTE}", {"PYTHONIOENCODING": "ascii"}, "error: train.epochs"),
        (f"{BAD} --out=gs://bucket/x", {}, "error: gs://bucket/x: expected a path of a local file system, found a URL"),
        (f"{BAD} --out s3://bucket/x", {}, "error: s3://bucket/x: expected a path of a local file system"),
        (f"{BAD} --out={{}}/x", {"JAX_PLATFORMS": "cuda"}, "error: JAX_PLATFORMS: expected backends with a device, "),
        (f"{BAD} --out={{}}/x", {"JAX_PLATFORMS": "nonsense"}, "error: JAX_PLATFORMS: expected backends with a"),
        ("python -m experiments.train digits --out={}/x --model.width 1000000000", {}, "error: model.width: expected"),
        ("python -m experiments.train digits --out={}/x --train.epochs 1000000000", {}, "error: train.epochs: exp"),
        ("python -m experiments.train digits --out={}/x --model.width 16384", {}, "GB, the memory of the devices, f"),
    ],
)
def test_a_command_that_cannot_run_says_so_in_one_line(tmp_path, line, env, stderr):
    done = shell(line.format(tmp_path), **env)
    assert done.returncode == 2
    assert stderr in done.stderr
    assert done.stderr.count("\n") == bool(stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_home_is_expanded_where_a_path_enters(tmp_path):
    done = shell(
        "python -m experiments.train digits --out=~/run --train.epochs 1 --optimizer.warmup-epochs 0 "
        "--data.num-train 64 --model.width 1",
        HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").is_file()
    assert not (ROOT / "~").exists()


CUBE = """
import sys
import warnings
import jax
from experiments import devices

def cube(x):
    return x @ x @ x

show = warnings.showwarning
devices.start()
if "unmended" in sys.argv:
    warnings.showwarning = show
print(jax.jit(cube)(jax.numpy.full((2, 2), 2.0))[0, 0])
"""


@pytest.mark.slow
def test_a_program_that_is_cut_off_in_the_cache_is_silently_compiled_anew(tmp_path):
    def run(*words: str) -> str:
        env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-c", CUBE, *words]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "32.0\n")
        return done.stderr

    assert run() == ""
    (program,) = tmp_path.glob("jit_cube-*-cache")
    whole = program.read_bytes()
    for part in (b"", whole[: len(whole) // 2]):
        program.write_bytes(part)
        assert "Error reading persistent compilation cache entry for 'jit_cube'" in run("unmended")
        assert program.read_bytes() == part
        assert run() == ""
        assert run("unmended") == ""  # it is whole again
    program.unlink()
    program.mkdir()
    assert "Error reading persistent compilation cache entry for 'jit_cube': IsADirectoryError" in run()
