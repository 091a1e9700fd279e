"""Several devices and processes: the mesh, where the state and the batches lie on it, and start-up.

The step is that of one device (`fsg_jax.make_train_step`): it sees the global batch, so that BatchNorm normalises
over all of it and the random draws do not depend on the number of devices (with JAX's default, partitionable keys).
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

from fsg_jax.typing import AnyArray, Batch

AXES = ("data", "fsdp")
"""Axes of the mesh. A batch is split over both, parameters over the second."""

_LAUNCHERS = (("SLURM_PROCID", "SLURM_NTASKS"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))

Tree = TypeVar("Tree")


def initialize_distributed(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    **options: Any,
) -> None:
    """`jax.distributed.initialize`, which finds SLURM, Open MPI, Kubernetes and cloud TPUs by itself.

    Elsewhere ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say what the arguments would.

    Call it before any other use of JAX. Does nothing where there is one process, or when called again. Processes
    on CPUs communicate through gloo, JAX's default.

    Args:
      coordinator_address: ``host:port`` of process 0; with `num_processes` and `process_id` needs no launcher.
      num_processes: in all.
      process_id: of this process, from 0.
      **options: others of `jax.distributed.initialize`.

    Raises:
      ValueError, RuntimeError: as there, e.g. an argument is missing, or JAX was used before.
    """
    if num_processes is None and "JAX_NUM_PROCESSES" in os.environ:
        num_processes, process_id = (int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    if jax.distributed.is_initialized() or num_processes == 1:
        return
    arguments = (coordinator_address, num_processes, process_id)
    given = "JAX_COORDINATOR_ADDRESS" in os.environ or any(value is not None for value in arguments)
    try:
        jax.distributed.initialize(*arguments, **options)
    except ValueError:  # no launcher found
        if given:
            raise
    except RuntimeError:  # JAX was used before, which does not matter to a single process
        if given or _launched():
            raise


def _launched() -> bool:
    """Whether a launcher says that there are several processes."""
    return any(rank in os.environ and int(os.environ.get(count, 1)) > 1 for rank, count in _LAUNCHERS)


def make_mesh(*, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes ``("data", "fsdp")`` of sizes ``(devices / fsdp, fsdp)``.

    Devices are in the order of their processes: process i of n holds part i of n of a global batch, as from
    ``make_loader(process_index=i, process_count=n)``.

    Args:
      fsdp: number of devices over which parameters are split; 1 keeps a copy on every device.
      devices: by default all devices of all processes.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"fsdp: expected a divisor of {len(devices)}, the number of devices, found {fsdp}")
    return Mesh(np.array(devices).reshape(-1, fsdp), AXES)


def state_shardings(state: Tree, mesh: Mesh | AbstractMesh, *, min_size: int = 2**16) -> Tree:
    """A `NamedSharding` for every leaf: copies on every device, or with ``fsdp > 1`` large leaves split.

    A leaf of at least `min_size` elements is split over ``"fsdp"`` along its largest dimension that the axis
    divides (the first of equals). The rule looks at shapes alone: parameters, their optimizer moments and their
    averages are split alike (FSDP, Zhao et al. 2023; ZeRO stage 3, Rajbhandari et al. 2020).

    Args:
      state: a `TrainState` or another tree, of arrays or `jax.ShapeDtypeStruct`. A state too large for one device
        is made in parts with ``jax.jit(init, out_shardings=state_shardings(jax.eval_shape(init, key), mesh))(key)``.
      mesh: from `make_mesh`.
      min_size: smaller leaves stay whole.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh.shape["fsdp"], min_size)), state)


def _spec(shape: tuple[int, ...], parts: int, min_size: int) -> PartitionSpec:
    divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not divisible or np.prod(shape) < min_size:
        return PartitionSpec()
    axis = max(divisible, key=lambda i: shape[i])
    return PartitionSpec(*[None] * axis, "fsdp")


def shard_state(state: Tree, mesh: Mesh, *, min_size: int = 2**16) -> Tree:
    """A copy of `state` laid out by `state_shardings`; every process must hold the same values."""
    return jax.tree.map(place, state, state_shardings(state, mesh, min_size=min_size))


def place(leaf: AnyArray, sharding: Sharding) -> Array:
    """A copy of an array, typed keys included, with this sharding; the same value in every process."""
    if isinstance(leaf, jax.Array) and (sharding.is_fully_addressable or not leaf.is_fully_addressable):
        return jax.device_put(jnp.copy(leaf), sharding)  # the first shard would be the array itself, donated with it
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def shard_batch(batch: Batch, mesh: Mesh) -> dict[str, Any]:
    """The global batch, its leading axis split over all devices, from the rows that each process has.

    Args:
      batch: this process's rows; entries may be trees of arrays, e.g. several input streams.
      mesh: from `make_mesh`.

    Raises:
      ValueError: the rows do not divide by the devices of this process; the entry is named.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    count = len(mesh.local_devices)
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(batch)):
        if leaf.shape[0] % count:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"{name}: expected a multiple of the {count} devices of this process, found {leaf.shape[0]} rows"
            )
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), dict(batch))
