"""Time of a batch against FLOPs: a ResNet-18 pruned 2, 4 and 8 times: ``python examples/studies/pruning_latency.py``.

The networks take turns in one process. Channels go at random, for the time does not depend on which.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg


def main() -> None:
    """Prints share of FLOPs, median time of a batch of 16 at 32 pixels, and its ratio to that of the whole network."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 32, 32, 3)), jnp.float32)
    model = fsg.create_model("resnet18", num_classes=100)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    networks = {1.0: (model, variables)}
    for share in (1 / 2, 1 / 4, 1 / 8):
        pruned = fsg.prune(model, variables, x[:2], budget={"flops": share}, score="random")
        networks[pruned.table.flops[1] / pruned.table.flops[0]] = pruned[:2]
    calls = {share: jax.jit(lambda x, m=m, v=v: m.apply(v, x)) for share, (m, v) in networks.items()}
    for call in calls.values():
        call(x).block_until_ready()
    times: dict[float, list[float]] = {share: [] for share in calls}
    for _ in range(30):
        for share, call in calls.items():
            began = time.perf_counter()
            call(x).block_until_ready()
            times[share].append(time.perf_counter() - began)
    for share, found in times.items():
        print(f"FLOPs {share:.3f}: {1000 * np.median(found):.1f} ms, {np.median(found) / np.median(times[1.0]):.3f}")


if __name__ == "__main__":
    main()
