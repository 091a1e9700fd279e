"""Checkpoints: whole, atomic, verified; damaged ones fall back loudly."""

import json
import shutil
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import Mlp, batch, new_state, train_step

import fsg_jax as fsg
from fsg_jax.training.checkpoint_files import seal


def trained(steps: int = 3, **kwargs) -> fsg.TrainState:
    """A copy, which may be donated."""
    return jax.tree.map(jnp.copy, train(steps, **kwargs))


@cache
def train(steps: int, **kwargs) -> fsg.TrainState:
    state = new_state(Mlp(batch_norm=True, dropout=0.2), **kwargs)
    step = train_step("sequential")
    for t in range(steps):
        state, _ = step(state, batch(t))
    return state


def assert_same(a: fsg.TrainState, b: fsg.TrainState) -> None:
    assert jax.tree.structure(a.opt_state) == jax.tree.structure(b.opt_state)
    for one, other in zip(parts(a), parts(b), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def parts(state: fsg.TrainState) -> tuple:
    return state.step, state.variables, state.opt_state, state.ema, jax.random.key_data(state.rng)


def save(folder: Path, *steps: int, metrics=None, **kwargs) -> fsg.Checkpointer:
    checkpointer = fsg.Checkpointer(folder, **kwargs)
    for step in steps:
        score = None if metrics is None else {"val_accuracy": metrics[step]}
        checkpointer.save(trained(step), data={"step": step}, metrics=score, extra={"note": f"at {step}"})
    checkpointer.wait()
    return checkpointer


def test_round_trip_of_everything(tmp_path):
    state = trained(ema_decay=0.9)
    checkpointer = fsg.Checkpointer(tmp_path)
    checkpointer.save(state, data={"step": 3}, extra={"seconds": 1.25})
    checkpointer.wait()
    template = new_state(state.model, state.tx, ema_decay=0.9)
    restored = checkpointer.restore(template)
    assert_same(restored.state, state)
    assert (restored.step, restored.data, restored.extra) == (3, {"step": 3}, {"seconds": 1.25})


def test_the_step_after_restoring_is_the_uninterrupted_one(tmp_path):
    state = trained(3)
    checkpointer = fsg.Checkpointer(tmp_path)
    checkpointer.save(state)
    step = train_step("sequential")
    after, metrics = step(state, batch(9))
    restored, metrics_again = step(checkpointer.restore(new_state(after.model, after.tx)).state, batch(9))
    assert_same(after, restored)
    assert metrics["loss"] == metrics_again["loss"]


def test_saving_copies_before_the_state_is_donated(tmp_path):
    """The save is under way while the next steps overwrite the donated buffers."""
    checkpointer = fsg.Checkpointer(tmp_path)
    state, step = trained(3), train_step("sequential")
    want = jax.tree.map(np.array, state.variables)
    checkpointer.save(state)
    for t in range(5):
        state, _ = step(state, batch(t))
    got = checkpointer.restore(new_state(state.model, state.tx)).state
    jax.tree.map(np.testing.assert_array_equal, got.variables, want)


def test_keeps_the_last_and_the_best(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4}
    checkpointer = save(tmp_path, 1, 2, 3, 4, 5, metrics=scores, keep_last=2, best="val_accuracy")
    assert checkpointer.steps() == [2, 4, 5]
    assert checkpointer.best_step() == 2


def test_checkpoints_without_metrics_do_not_pile_up(tmp_path):
    checkpointer = save(tmp_path, 1, 2, 3, 4, keep_last=2, best="val_accuracy")
    assert checkpointer.steps() == [3, 4]
    assert checkpointer.best_step() is None


def array_files(folder: Path) -> list[Path]:
    """Those that hold arrays; of the files beside them not all are read."""
    return [path for path in folder.rglob("d/*") if path.is_file()]


# Of several failed reads TensorStore reports the later ones to an event loop that is closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty_meta"])
def test_a_damaged_newest_checkpoint_falls_back_loudly(tmp_path, damage):
    save(tmp_path, 1, 2).close()
    if damage in ("truncate", "flip"):
        for victim in array_files(tmp_path / "2" / "state"):
            content = victim.read_bytes()
            at = len(content) // 2
            rest = bytes([content[at] ^ 255]) + content[at + 1 :]
            victim.write_bytes(content[:at] + rest * (damage == "flip"))
    elif damage == "remove":
        shutil.rmtree(tmp_path / "2" / "state" / "d")
    else:
        next((tmp_path / "2" / "meta").glob("metadata*")).write_text("")
    state = trained(1)

    def restore() -> tuple:
        checkpointer = fsg.Checkpointer(tmp_path)
        return checkpointer, checkpointer.restore(new_state(state.model, state.tx))

    with pytest.warns(UserWarning, match=r"2 is damaged.*2\.corrupt"):
        checkpointer, restored = restore()
    assert restored.step == 1
    assert_same(restored.state, state)
    assert (tmp_path / "2.corrupt").is_dir()
    checkpointer.save(trained(2))
    checkpointer.wait()
    assert checkpointer.steps() == [1, 2]


def test_checksums_catch_what_the_format_does_not(tmp_path):
    save(tmp_path, 1, 2).close()
    meta = next((tmp_path / "2" / "meta").glob("metadata*"))
    content = json.loads(meta.read_text())
    name = next(k for k in content["crc32"] if "kernel" in k)
    content["crc32"][name] = content["crc32"][name][:-8] + "00000000"
    del content["sha256"]
    meta.write_text(json.dumps(seal(content)))
    state = trained(1)
    with pytest.warns(UserWarning, match="kernel"):
        assert fsg.Checkpointer(tmp_path).restore(new_state(state.model, state.tx)).step == 1


def test_nothing_to_restore(tmp_path):
    with pytest.raises(fsg.CheckpointError, match="no checkpoint"):
        fsg.Checkpointer(tmp_path).restore(new_state())


def test_another_model_is_refused_and_kept(tmp_path):
    save(tmp_path, 1).close()
    with pytest.raises(fsg.CheckpointError, match=r"first.*kernel.*float32\[4, 6\], not float32\[4, 7\]"):
        fsg.Checkpointer(tmp_path).restore(new_state(Mlp(batch_norm=True, width=7)))
    with pytest.raises(fsg.CheckpointError, match=r"missing.*unknown"):
        fsg.Checkpointer(tmp_path).restore(new_state(Mlp(), fsg.routed(params=optax.adam(0.1), gates=optax.sgd(0.1))))
    assert (tmp_path / "1").is_dir()


@pytest.mark.parametrize("smallest", [False, True])
def test_nan_is_the_worst_value(tmp_path, smallest):
    sign = -1 if smallest else 1
    scores = {1: 0.9 * sign, 2: float("nan"), 3: 0.4 * sign}
    options = {"keep_last": 1, "best": "val_accuracy", "smallest": smallest}
    checkpointer = save(tmp_path, 1, 2, 3, metrics=scores, **options)
    assert (checkpointer.steps(), checkpointer.best_step()) == ([1, 3], 1)
    checkpointer.close()
    with fsg.Checkpointer(tmp_path, **options) as again:
        assert (again.steps(), again.best_step()) == ([1, 3], 1)


def test_metrics_that_are_all_nan_tell_no_best(tmp_path):
    checkpointer = save(tmp_path, 1, 2, metrics={1: float("nan"), 2: float("nan")}, best="val_accuracy")
    assert (checkpointer.steps(), checkpointer.best_step()) == ([1, 2], None)


def test_a_step_that_is_not_the_latest_is_not_skipped_silently(tmp_path):
    with fsg.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(trained(2))
        for step in (1, 2):
            with pytest.raises(fsg.CheckpointError, match=f"expected a step after 2, which is there, found {step}"):
                checkpointer.save(trained(step))
        assert checkpointer.steps() == [2]


def test_a_block_ends_when_all_is_saved(tmp_path):
    with fsg.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(trained(1))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_what_is_no_json_is_refused_at_once(tmp_path):
    with pytest.raises(fsg.CheckpointError, match="not JSON serializable"):
        fsg.Checkpointer(tmp_path).save(trained(1), extra={"a": object()})


def test_a_checkpoint_without_a_seal_is_read(tmp_path):
    """As those of before 2026-11-27, whose metrics were a file of their own."""
    save(tmp_path, 1, 2).close()
    for step, score in ((1, 0.9), (2, 0.5)):
        file = tmp_path / str(step) / "meta" / "metadata"
        meta = json.loads(file.read_text())
        file.write_text(json.dumps({key: meta[key] for key in ("data", "extra", "crc32")}))
        (tmp_path / str(step) / "metrics").mkdir()
        (tmp_path / str(step) / "metrics" / "metrics").write_text(json.dumps({"val_accuracy": score}))
    checkpointer = fsg.Checkpointer(tmp_path, best="val_accuracy")
    state = trained(1)
    assert checkpointer.best_step() == 1
    assert checkpointer.restore(new_state(state.model, state.tx)).data == {"step": 2}


def test_one_of_another_run_is_treated_as_damaged(tmp_path):
    save(tmp_path, 1, 2).close()
    state = trained(1)
    template = new_state(state.model, state.tx)
    checkpointer = fsg.Checkpointer(tmp_path)
    with pytest.warns(UserWarning, match=r"2 is damaged \(ValueError: note: expected at 1, found at 2\)"):
        restored = checkpointer.restore(template, expect={"note": "at 1", "another": 3})
    assert restored.step == 1


@pytest.mark.parametrize("name", ["48", "99999999999", "01"])
def test_a_folder_with_another_name_than_its_step_is_not_used(tmp_path, name):
    save(tmp_path, 1, 2).close()
    (tmp_path / "2").rename(tmp_path / name)
    with pytest.warns(
        UserWarning, match=rf"{name} is damaged \(ValueError: it is of step 2\).*aside as {name}\.corrupt"
    ):
        checkpointer = fsg.Checkpointer(tmp_path)
    assert checkpointer.steps() == [1]
    checkpointer.save(trained(2))
    checkpointer.wait()
    assert checkpointer.steps() == [1, 2]


def test_a_url_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match="gs://bucket/x: expected a path of a local file system"):
        fsg.Checkpointer("gs://bucket/x")
    assert fsg.Checkpointer("~/x").directory == tmp_path / "home" / "x"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
