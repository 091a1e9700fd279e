"""Eight virtual devices do what one device does, with one all-reduce of gradients a pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch, new_state, train_step

import fsg_jax as fsg
from experiments.bench.collectives import Collective, list_collectives, predict_communication, summarise_collectives
from fsg_jax.training.sharding import initialize_distributed, make_mesh, shard_batch, shard_state, state_shardings

TESTS = Path(__file__).parent
FAST = ("vit sequential", "nested", "odd batch", "odd mesh")
SLOW = ("resnet sequential", "resnet joint", "vit joint", "vit every", "vit accumulate", "vit masked", "vit mixup")
SLOW += ("vit fsdp", "resnet fsdp", "checkpoints", "checkpoints fsdp")
# Eight devices on the CPU, and little time spent on making the programs fast.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
FLAGS += f" --xla_llvm_disable_expensive_passes=true {os.environ.get('XLA_FLAGS', '')}"


def run_worker(folder, names):
    env = os.environ | {"XLA_FLAGS": FLAGS, "PYTHONPATH": str(TESTS.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(TESTS / "sharding_worker.py"), str(folder), *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return run_worker(tmp_path_factory.mktemp("fast"), FAST)


@pytest.fixture(scope="module")
def slow_report(tmp_path_factory):
    return run_worker(tmp_path_factory.mktemp("slow"), [*SLOW, "evaluation"])


def assert_equal_to_one_device(found):
    assert found["distance"] < 5e-5
    np.testing.assert_allclose(*found["loss"], rtol=1e-5)


def test_eight_devices_equal_one(report):
    """Three steps with augmentation, dropout, clipping and averaging."""
    assert_equal_to_one_device(report["vit sequential"])


def test_one_gradient_all_reduce_a_pass_without_batch_norm(report):
    """The gate pass has one, small, and the main pass one, of all weights; metrics travel with the latter."""
    found = report["vit sequential"]
    assert {kind: count for kind, (count, _) in found["totals"].items()} == {"small all-reduce": 1, "all-reduce": 1}
    assert found["totals"]["all-reduce"][1] > found["weight_bytes"]
    assert found["sources"] == ["gate2"]
    assert found["split"] == 0


@pytest.mark.slow
def test_one_gradient_all_reduce_a_pass_and_those_of_batch_norm(slow_report):
    found = slow_report["resnet sequential"]
    assert found["totals"].keys() == {"small all-reduce", "all-reduce"}
    count, size = found["totals"]["all-reduce"]
    assert count == 1
    assert size > 0.95 * found["weight_bytes"]
    # Small gradients travel with BatchNorm's reductions: those of the gates, of the head, and the metrics.
    assert set(found["sources"]) <= {
        "bn1",
        "bn2",
        "downsample_bn",
        "gate1",
        "gate2",
        "jvp()",
    }


@pytest.mark.slow
def test_fsdp_gathers_each_large_leaf_once_and_splits_no_activation(slow_report):
    found = slow_report["vit fsdp"]
    assert found["totals"].keys() == {"all-gather", "small all-reduce", "all-reduce"}
    count, size = found["totals"]["all-gather"]
    assert 0.9 * found["weight_bytes"] < size <= found["weight_bytes"]
    assert found["split"] == 3 * count  # the parameter, its momentum and its average


@pytest.mark.slow
@pytest.mark.parametrize("way", ["8 to 1", "1 to 8", "8 to 8"])
def test_checkpoints_move_between_numbers_of_devices(slow_report, way):
    exact, continued = slow_report["checkpoints"][way]
    assert exact == 0
    assert continued < 5e-5


def test_streams_are_split_by_rows(report):
    assert report["nested"] == [8, 2, 16, 16, 1, 6]


def test_what_does_not_divide(report):
    assert "image: expected a multiple of" in report["odd batch"]
    assert "8 devices of this process, found 12 rows" in report["odd batch"]
    assert "fsdp: expected a divisor" in report["odd mesh"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SLOW if "checkpoints" not in name])
def test_eight_devices_equal_one_in_every_mode(slow_report, name):
    assert_equal_to_one_device(slow_report[name])


@pytest.mark.slow
def test_collectives_of_other_modes(slow_report):
    totals = {name: slow_report[name]["totals"] for name in SLOW if "checkpoints" not in name}
    assert totals["vit joint"].keys() == {"all-reduce"}
    assert totals["vit joint"]["all-reduce"][0] == 1
    assert totals["resnet joint"]["all-reduce"][0] == 1
    assert totals["vit every"].keys() == {"small all-reduce", "all-reduce"}
    # Mixing partners lie on other devices, and micro-batches are cut across them: images and labels move.
    assert totals["vit mixup"]["all-gather"][0] == totals["vit accumulate"]["all-gather"][0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["8 to 1", "1 to 8", "8 to 8"])
def test_split_checkpoints_move_between_numbers_of_devices(slow_report, way):
    exact, continued = slow_report["checkpoints fsdp"][way]
    assert exact == 0
    assert continued < 5e-5


@pytest.mark.slow
def test_evaluation_of_a_split_batch(slow_report):
    one, eight = slow_report["evaluation"]
    assert one["count"] == eight["count"] == 13
    np.testing.assert_allclose(list(one.values()), list(eight.values()), rtol=1e-5)


def test_one_device_is_a_mesh_too():
    mesh = make_mesh(devices=jax.devices()[:1])
    state = new_state()
    placed = shard_state(state, mesh)
    step = fsg.make_train_step(fsg.losses.cross_entropy, "joint", shardings=state_shardings(state, mesh))
    placed, metrics = step(placed, shard_batch(batch(), mesh))
    state, plain = train_step("joint")(state, batch())  # the copy was donated, the state is still there
    assert metrics["loss"] == plain["loss"]
    jax.tree.map(np.testing.assert_array_equal, placed.params, state.params)


def test_only_large_leaves_are_split_along_their_largest_divisible_dimension():
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"))
    shapes = {"kernel": (3, 8, 12), "odd": (9, 15), "small": (4, 4), "first": (16, 16), "step": ()}
    leaves = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {name: tuple(s.spec) for name, s in state_shardings(leaves, mesh, min_size=32).items()}
    assert specs == {"kernel": (None, None, "fsdp"), "odd": (), "small": (), "first": ("fsdp",), "step": ()}


def test_a_single_process_needs_no_start():
    initialize_distributed()
    initialize_distributed(num_processes=1)
    assert not jax.distributed.is_initialized()
    with pytest.raises((ValueError, RuntimeError)):
        initialize_distributed("localhost:1", num_processes=2)


PROGRAM = """
HloModule jit_step, entry_computation_layout={()->f32[]}, num_partitions=8
  %ar = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%a, %b), channel_id=1, replica_groups={}, metadata={op_name="a"}
  %ag = f32[8,4]{1,0} all-gather(%c), replica_groups=[2,4]<=[8], dimensions={0}
  %rs = f32[2]{0} reduce-scatter(%d), replica_groups={{0,1,2},{3,4,5}}, dimensions={0}
  %ags = (f32[2]{0}, f32[16]{0}) all-gather-start(%e), replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
  %agd = f32[16]{0} all-gather-done(%ags)
  %cp = pred[10]{0} collective-permute(%f), source_target_pairs={{0,1}}
"""


def test_collectives_are_read_from_the_text_of_a_program():
    assert list_collectives(PROGRAM) == [
        Collective("all-reduce", 16 + 12, 8, "a"),
        Collective("all-gather", 128, 4, ""),
        Collective("reduce-scatter", 24, 3, ""),
        Collective("all-gather", 64, 4, ""),
        Collective("collective-permute", 10, 8, ""),
    ]
    totals = summarise_collectives(list_collectives(PROGRAM), small=20)
    assert totals["all-reduce"] == {"count": 1, "bytes": 28}
    assert totals["all-gather"] == {"count": 2, "bytes": 192}
    assert summarise_collectives(list_collectives(PROGRAM))["small all-reduce"] == {"count": 1, "bytes": 28}


def test_prediction_is_that_of_rings():
    reduce, gather = Collective("all-reduce", 800, 8, ""), Collective("all-gather", 80, 8, "")
    assert predict_communication([reduce], 8, 100.0) == (1400, 14)
    assert predict_communication([gather], 8, 100.0) == (70, 0.7)
    assert predict_communication([reduce, gather], 8, 100.0, latency=1.0).seconds == pytest.approx(14.7 + 9)
    assert predict_communication([reduce, gather], 1, 100.0, latency=1.0) == (0, 0)
    with pytest.raises(ValueError, match="bandwidth: expected a finite number > 0, found 0"):
        predict_communication([reduce], 8, 0)
