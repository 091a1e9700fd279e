"""The benchmark's PyTorch twins do the same work as the library's steps."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from torchvision_operators import declare_missing_operators

import fsg_jax as fsg
from experiments.bench.comparisons import compare_with_torch
from experiments.bench.jax_steps import make_batch, make_state
from experiments.bench.measurements import Bench
from experiments.bench.settings import MODELS, default_settings

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

from experiments.bench.torch_models import load_variables, make_model  # noqa: E402
from experiments.bench.torch_steps import torch_side  # noqa: E402

SETTINGS = replace(default_settings("cpu", smoke=True), image=16, batch=8, dim=24)
LARGER = replace(SETTINGS, image=64)
"""For EfficientNet: below it, BatchNorm over the single pixels of 8 images makes much of the last digit."""


@pytest.fixture(scope="module", autouse=True)
def importable_torchvision():
    """Of which timm takes a part."""
    declare_missing_operators()


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
    settings = LARGER if model.startswith("efficientnet") else SETTINGS
    gated, batch = routing != "none", make_batch(settings)
    state = make_state(settings, model, gated=gated, routing=routing)
    peer = torch_side(settings, model, state.variables, batch, two_passes=gated, compiled=False)
    step, ours = fsg.make_train_step(fsg.losses.cross_entropy, routing), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        ours.append(float(metrics["loss"]))
    # The peer has taken two steps when it is made.
    theirs = [peer.about["first_loss"], *(peer.call().item() for _ in range(2, steps))]
    return [ours[0], *ours[2:]], theirs


@pytest.mark.parametrize("model", MODELS)
def test_plain_steps(model):
    ours, theirs = losses(model, "none", 4)
    assert len(set(ours)) == 3
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)


@pytest.mark.parametrize("model", MODELS)
def test_two_passes_are_those_of_the_reference(model):
    ours, theirs = losses(model, "reference", 4)
    np.testing.assert_allclose(ours, theirs, rtol=5e-4)


def test_models_suite_with_a_peer(tmp_path):
    settings = replace(SETTINGS, models=("vit_tiny",))
    bench = Bench(settings, tmp_path, "cpu")
    compare_with_torch(bench)
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
    with pytest.raises(ValueError, match=r"no place for \['blocks\.0\.gate1\.logits'"):
        load_variables(make_model(SETTINGS, "vit_tiny", gated=False), state.variables)
    with pytest.raises(ValueError, match=r"found none for \['blocks\.0\.gate1\.logits'"):
        load_variables(make_model(SETTINGS, "vit_tiny", gated=True), make_state(SETTINGS, "vit_tiny").variables)
