"""Where things are computed: one device, several, or several processes; and what is chosen for the kind of device."""

import glob
import os
import re
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import xla_flags
from experiments.errors import UserError
from fsg_jax._files import BusyError
from fsg_jax.linen.init_state import once_options
from fsg_jax.models import create_model, efficientnet, resnet, vit
from fsg_jax.models.convolution import conv_general_dilated
from fsg_jax.models.efficientnet import EFFICIENTNETS
from fsg_jax.models.norms import FastBatchNorm, FastLayerNorm
from fsg_jax.models.preact_resnet import PREACT_RESNETS
from fsg_jax.models.resnet import RESNETS
from fsg_jax.models.vgg import VGGS
from fsg_jax.models.vig import VIGS
from fsg_jax.models.vit import VITS
from fsg_jax.training import sharding

T = TypeVar("T")

CONVOLUTIONAL = {*RESNETS, *EFFICIENTNETS, *VIGS, *VGGS, *PREACT_RESNETS}
"""Names of the models that have convolutions in their blocks."""


FAST_CONVOLUTION = partial(nn.Conv, conv_general_dilated=conv_general_dilated)
FAST_NORMS: dict[Any, Any] = {
    norm: partial(fast, **norm.keywords)
    for norm, fast in (
        (resnet.BatchNorm, FastBatchNorm),
        (efficientnet.TFBatchNorm, FastBatchNorm),
        (vit.LayerNorm, FastLayerNorm),
    )
}
"""By the norm in whose place they are. One object each, so that models with it are equal and share their programs."""


class Placement(NamedTuple):
    """Puts states, batches and row numbers on the devices; without a mesh, on the one device there is."""

    mesh: Mesh | None

    @property
    def replicated(self) -> NamedSharding | None:
        """All of an array on every device."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def shardings(self, init: Callable[..., Any]) -> Any:
        """Where the leaves of a state lie that ``init(key)`` makes; None without a mesh."""
        if self.mesh is None:
            return None
        return sharding.state_shardings(jax.eval_shape(init, jax.random.key(0)), self.mesh)

    def make_state(self, init: Callable[..., Any], seed: int) -> Any:
        """The state that ``init(key)`` makes: replicated, or with its large leaves split over the axis ``fsdp``."""
        options = {} if self.mesh is None else {"out_shardings": self.shardings(init)}
        return jax.jit(init, compiler_options=once_options(), **options)(jax.random.key(seed))

    def put_batch(self, batch: Any) -> Any:
        """This process's part of a batch, split over all devices."""
        if self.mesh is None:
            return jax.device_put(batch)
        return sharding.shard_batch(batch, self.mesh)

    def put_rows(self, rows: Any) -> Any:
        """Row numbers (..., batch), of which every device gets those of its part of the batch."""
        return jnp.asarray(rows) if self.mesh is None else self._split(rows, rows.ndim - 1)

    def put_whole(self, batch: Any) -> Any:
        """A batch of which every process holds all rows, split over all devices."""
        return batch if self.mesh is None else {k: self._split(v, 0) for k, v in batch.items()}

    def round_up(self, size: int) -> int:
        """The least batch size from `size` on that the devices divide."""
        return size if self.mesh is None else -(-size // self.mesh.size) * self.mesh.size

    def _split(self, values: np.ndarray, axis: int) -> jax.Array:
        assert self.mesh is not None
        spec = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, self.mesh.axis_names))
        return jax.make_array_from_callback(values.shape, spec, np.asarray(values).__getitem__)


@cache
def placement(fsdp: int, batch_size: int) -> Placement:
    """All devices of all processes.

    Raises:
      UserError: the number of devices does not divide the batch, or `fsdp` does not divide the number of devices.
    """
    devices = jax.device_count()
    if devices % fsdp:
        raise UserError(f"train.fsdp: expected a divisor of the number of devices, {devices}, found {fsdp}")
    if batch_size % devices:
        raise UserError(
            f"train.batch_size: expected a multiple of the number of devices, {devices}, found {batch_size}"
        )
    if devices == 1:
        return Placement(None)
    return Placement(sharding.make_mesh(fsdp=fsdp))


def choose(setting: str, *, accelerator: str, cpu: str) -> str:
    """`setting`, or where it is ``"auto"`` what suits the device."""
    if setting != "auto":
        return setting
    return cpu if jax.default_backend() == "cpu" else accelerator


def seed_mode(model: str) -> str:
    """How several seeds run in one program: convolutions do not gain from ``vmap``, which makes them grouped."""
    return "map" if model in CONVOLUTIONAL else "vmap"


def seeds_together(model: str) -> int:
    """How many seeds on data in device memory run in one program: some for small ViTs on one accelerator."""
    return 4 if model not in CONVOLUTIONAL and jax.default_backend() != "cpu" and jax.device_count() == 1 else 1


def model_options(name: str) -> dict[str, Any]:
    """Arguments of `fsg_jax.create_model` that suit the device: on a CPU, convolutions and norms fast there."""
    if jax.default_backend() != "cpu" or name not in CONVOLUTIONAL | VITS.keys():
        return {}
    return ({"conv": FAST_CONVOLUTION} if name in CONVOLUTIONAL else {}) | fast_norm(name)


def fast_norm(name: str) -> dict[str, Any]:
    """The argument ``norm`` that computes a model's norm by another class, of `FAST_NORMS`; none if there is none."""
    norm = FAST_NORMS.get(create_model(name, num_classes=1).norm)
    return {"norm": norm} if norm else {}


def memory() -> int:
    """Bytes of memory of all devices together; of a CPU that of the machine."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] * jax.device_count()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * jax.process_count()


def share_of_memory_maps() -> float:
    """What this process uses of the memory maps that Linux allows it; 0 where it is not known."""
    try:
        with open("/proc/self/maps", "rb") as maps:
            return sum(1 for _ in maps) / int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 0.0


_compiling = [0.0]


def compile_seconds() -> float:
    """Seconds that this process has spent in the compiler until now."""
    return sum(_compiling)


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiling.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_listen)


HALF_A_PROGRAM = re.compile(r"Error reading persistent compilation cache entry for '(.*)': (error|ZstdError): ")
"""JAX's warning of a program in the cache that cannot be decompressed; the first group is the program's name."""


def _mend_cache() -> None:
    """From now on, a program in the cache that is cut off is no news but is removed; JAX compiles it anew and keeps it.

    JAX writes programs in place. Another process may read one before it is whole, which then stays; but what a killed
    process or a full disk left behind would never be replaced, and every process would compile it. Warnings of files
    that cannot be read or written at all are shown as before.
    """
    show, config = warnings.showwarning, cast(Any, jax.config)

    def show_or_mend(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        half = HALF_A_PROGRAM.match(str(message))
        if half is None or category is not UserWarning:
            return show(message, category, *where, **more)
        for file in Path(config.jax_compilation_cache_dir).glob(f"{glob.escape(half[1])}-*-cache"):
            with suppress(OSError):
                if not _is_whole(file.read_bytes()):
                    file.unlink()

    warnings.showwarning = show_or_mend


def _is_whole(compressed: bytes) -> bool:
    """Never where JAX found the package zstandard: then all programs of that name are compiled anew."""
    try:
        return bool(zlib.decompress(compressed))
    except zlib.error:
        return False


def start() -> None:
    """Prepares a command: flags for XLA, the other processes of a launcher, a cache of compiled programs.

    Programs are kept in ``JAX_COMPILATION_CACHE_DIR``, or else in the user's cache folder, and beside them which
    kernels a GPU was measured to be fastest with: a program that is compiled anew has the kernels of the last time.

    Raises:
      UserError: JAX finds no device.
    """
    xla_flags.speed_up_convolutions()
    sharding.initialize_distributed()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second where no backend of those asked for is installed
        why = " ".join(str(error).split()) or "no such backend is installed"
        named = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(f"JAX_PLATFORMS: expected backends with a device, found {named!r} ({why})") from None
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "fsg_jax" / "xla"))
    if "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES" not in os.environ:
        jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")
    _mend_cache()


def is_first() -> bool:
    """Whether this process writes files; the only one, or number 0 of several."""
    return jax.process_index() == 0


def on_first(action: Callable[[], T]) -> T | None:
    """Calls `action` in process 0 alone; None elsewhere.

    Raises:
      BusyError, UserError: in the other processes, when it failed in process 0, where its own error is raised.
    """
    if jax.process_count() == 1:
        return action()
    result: T | None = None
    error: Exception | None = None
    try:
        result = action() if is_first() else None
    except Exception as caught:
        error = caught
    outcome = int(multihost_utils.broadcast_one_to_all(np.asarray((error is not None) + isinstance(error, BusyError))))
    if error is not None:
        raise error
    if outcome:
        raise (BusyError if outcome == 2 else UserError)("process 0 could not go on; its own message says why")
    return result


def any_process(flag: bool) -> bool:
    """Whether `flag` holds in any process; all must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
