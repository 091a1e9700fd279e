"""The benchmark's PyTorch twins do the same work as the library's steps."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import fsg_jax as fsg
from experiments.bench.compare import run
from experiments.bench.models_jax import make_batch, make_state
from experiments.bench.record import Bench
from experiments.bench.settings import MODELS, default_settings

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

from experiments.bench.peers_torch import make_model  # noqa: E402
from experiments.bench.steps_torch import Peer  # noqa: E402

SETTINGS = replace(default_settings("cpu", smoke=True), image=16, batch=8, dim=24)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_parameter_counts(model, gated):
    routing = "sequential" if gated else "none"
    shapes = jax.eval_shape(lambda: make_state(SETTINGS, model, gated=gated, routing=routing)).trainable
    twin = make_model(SETTINGS, model, gated=gated)
    assert sum(p.numel() for p in twin.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def losses(model, routing, steps):
    """Of both sides, from the same weights on the same batch, before each of some steps."""
    gated, batch = routing != "none", make_batch(SETTINGS)
    state = make_state(SETTINGS, model, gated=gated, routing=routing)
    peer = Peer("twin", SETTINGS, model, state.variables, batch, two_passes=gated, compiled=False)
    step, ours, theirs = fsg.make_train_step(fsg.losses.cross_entropy, routing), [], []
    for _ in range(steps):
        state, metrics = step(state, batch)
        ours.append(float(metrics["loss"]))
        theirs.append(peer.step().item())
    return ours, theirs


@pytest.mark.parametrize("model", MODELS)
def test_plain_steps(model):
    ours, theirs = losses(model, "none", 3)
    assert ours[2] != ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)


@pytest.mark.parametrize("model", MODELS)
def test_two_passes_are_those_of_the_reference(model):
    ours, theirs = losses(model, "reference", 3)
    np.testing.assert_allclose(ours, theirs, rtol=5e-4)


def test_models_suite_with_a_peer(tmp_path):
    settings = replace(SETTINGS, models=("vit_tiny",))
    bench = Bench(settings, tmp_path, "cpu")
    run(bench)
    rows = {row["side"]: row for row in bench.of("models")}
    assert set(rows) == {
        "fsg_jax plain",
        "fsg_jax sequential",
        "PyTorch plain, eager",
        "PyTorch two passes, eager",
    }
    plain, peer = rows["fsg_jax plain"], rows["PyTorch plain, eager"]
    assert plain["first_loss"] == pytest.approx(peer["first_loss"], rel=1e-4)
    assert peer["fsg_jax_speed_ratio"] > 0
    assert rows["PyTorch two passes, eager"]["compile_seconds"] is None


def test_variables_that_do_not_fit_are_named():
    state = make_state(SETTINGS, "vit_tiny", gated=True, routing="sequential")
    batch = make_batch(SETTINGS)
    with pytest.raises(ValueError, match=r"without a place \['blocks_0\.gate1\.logits'"):
        Peer("twin", SETTINGS, "vit_tiny", state.variables, batch, two_passes=False, compiled=False)
