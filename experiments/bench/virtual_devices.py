"""``python -m experiments.bench.virtual_devices MODEL ROUTING SETTINGS``: collectives of a data-parallel step, as JSON.

Run by the suite ``collectives`` in a process of its own, because the number of devices is fixed when JAX starts. The
step is compiled, not run.
"""

import json
import sys
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

import fsg_jax as fsg
from experiments.bench.hlo import list_collectives, predict_communication, summarise_collectives
from experiments.bench.models_jax import make_batch, make_state
from experiments.bench.settings import Settings
from fsg_jax.training.sharding import AXES, make_mesh, state_shardings

DEVICES = (8, 64, 512)
LINKS = {"450 GB/s": 450e9, "50 GB/s": 50e9}
"""Bytes a second that a device sends: NVLink within a host, 400 Gbit/s between hosts; datasheet figures."""
LATENCY = 5e-6


def compile_step(settings: Settings, model: str, routing: str) -> Any:
    """The training step over all devices of this process, the global batch split."""
    gated, mesh = routing != "none", make_mesh()
    state = jax.eval_shape(lambda: make_state(settings, model, gated=gated, routing=routing))
    rows = NamedSharding(mesh, PartitionSpec(AXES))
    state = jax.tree.map(_placed, state, state_shardings(state, mesh))
    batch = {name: _placed(value, rows) for name, value in make_batch(settings).items()}
    step: Any = fsg.make_train_step(fsg.losses.cross_entropy, routing)
    return step.lower(state, batch).compile()


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def describe(compiled: Any) -> dict[str, Any]:
    """Instructions and bytes by kind, and the prediction for each number of devices."""
    found = list_collectives(compiled)
    kinds = {kind: total._asdict() for kind, total in summarise_collectives(found).items()}
    predictions = {}
    for devices in DEVICES:
        each = {link: predict_communication(found, devices, speed, LATENCY) for link, speed in LINKS.items()}
        sent = next(iter(each.values())).bytes_per_device
        predictions[devices] = {"bytes": sent} | {f"seconds at {link}": p.seconds for link, p in each.items()}
    return {"kinds": kinds, "predictions": predictions}


def main() -> None:
    """Command line."""
    model, routing, settings = sys.argv[1:]
    print(json.dumps(describe(compile_step(Settings.from_description(json.loads(settings)), model, routing))))


if __name__ == "__main__":
    main()
