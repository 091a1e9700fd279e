"""The files of a checkpoint: a state as arrays by path, their checksums, and reading them."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten

from fsg_jax._files import check_file, json_digest, read_json, replacing, write_json
from fsg_jax.training.sharding import place
from fsg_jax.training.state import TrainState

PLAIN = "arrays.npz"
"""File of the arrays in a checkpoint that `write_plain` wrote."""


class MismatchError(ValueError):
    """A sound checkpoint of something else: other leaves or other shapes."""


def to_leaves(state: TrainState) -> dict[str, Any]:
    """Copies of the leaves of a state by path; the random key as its integers.

    On the host, unless other processes hold a part of the leaf: then a `jax.Array` divided as it is.
    """
    return {path: _copied(_unkey(leaf)) for path, leaf in _paths(state)[0]}


def to_template(like: TrainState) -> dict[str, Any]:
    """What `to_leaves` gives, without the values."""
    return {path: _emptied(_unkey(leaf)) for path, leaf in _paths(like)[0]}


def _copied(leaf: Any) -> Any:
    return np.array(leaf) if _is_here(leaf) else jnp.copy(leaf)


def _emptied(leaf: Any) -> Any:
    if _is_here(leaf):
        return np.empty(np.shape(leaf), leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _is_here(leaf: Any) -> bool:
    """Whether this process holds all of it."""
    return getattr(leaf, "is_fully_addressable", True)


def from_leaves(leaves: Mapping[str, Any], like: TrainState) -> TrainState:
    """The reverse of `to_leaves`; arrays that `like` has committed to devices are put there."""
    paths, treedef = _paths(like)
    return tree_unflatten(treedef, [_placed(_rekey(leaves[path], old), old) for path, old in paths])


def _placed(leaf: Any, like: Any) -> Any:
    committed = isinstance(like, jax.Array) and like.committed
    return place(leaf, like.sharding) if committed else jnp.array(leaf)


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
    """CRC-32 of each array with its shape and dtype, so that a template can be compared too."""
    return {k: f"{v.dtype}{list(v.shape)}:{zlib.crc32(_bytes(_whole(v))):08x}" for k, v in leaves.items()}


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in the order of its rows; not copied where they lie so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _whole(leaf: Any) -> np.ndarray:
    """The array on the host, gathered if other processes hold a part of it."""
    if isinstance(leaf, np.ndarray) or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)


def seal(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` with its SHA-256."""
    return dict(meta) | {"sha256": json_digest(meta)}


def read_meta(path: Path) -> dict[str, Any]:
    """Step, data position, extras, metrics and checksums of a checkpoint; no array is read.

    Raises:
      ValueError: damaged, or of another step than its folder says.
    """
    if not path.is_dir():
        raise ValueError("expected a folder, found a file")
    for part in path.rglob("*"):
        if not part.is_dir():  # a pipe would block whoever opens it
            check_file(part, limit=2**63)
    meta = read_json(path / "meta" / "metadata")
    if meta.keys() == {"data", "extra", "crc32"}:  # those of before 2026-11-27 had no seal
        scores = path / "metrics" / "metrics"
        return meta | {"step": int(path.name), "metrics": read_json(scores) if scores.exists() else {}}
    if meta.pop("sha256", None) != json_digest(meta):
        raise ValueError("its metadata differ from their checksum")
    if str(meta["step"]) != path.name:
        raise ValueError(f"it is of step {meta['step']}")
    return meta


def read_leaves(path: Path, template: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint, each of the type, and over the devices, of that in `template`."""
    if (path / PLAIN).exists():
        with np.load(path / PLAIN) as arrays:
            return {name: arrays[name].view(like.dtype) for name, like in template.items()}
    return ocp.StandardCheckpointHandler().restore(path / "state", args=ocp.args.StandardRestore(dict(template)))


def write_plain(path: Path, leaves: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint without Orbax, in this thread alone, whole or not at all; `read_leaves` reads it.

    Raises:
      ValueError: other processes hold a part of the leaves.
    """
    if not all(isinstance(leaf, np.ndarray) for leaf in leaves.values()):
        raise ValueError("the interpreter has ended; call wait or close before, in every process")
    with replacing(path) as folder:
        (folder / "meta").mkdir(parents=True)
        write_json(folder / "meta" / "metadata", meta)
        np.savez(folder / PLAIN, **leaves)


def read_verified(path: Path, template: Mapping[str, Any], expect: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint on the host, compared with their checksums; no other process takes part.

    Raises:
      MismatchError: they do not fit `template`.
      ValueError: damaged, or an extra differs from what `expect` has. The readers raise errors of other types too.
    """
    meta = read_meta(path)
    for name, value in expect.items():
        if meta["extra"].get(name, value) != value:
            raise ValueError(f"{name}: expected {value}, found {meta['extra'][name]}")
    saved = meta["crc32"]
    check_fit(saved, template)
    leaves = read_leaves(path, {k: np.empty(v.shape, v.dtype) for k, v in template.items()})
    damaged = [k for k, crc in checksums(leaves).items() if crc != saved[k]]
    if damaged:
        raise ValueError(f"{len(damaged)} arrays differ from their checksums, the first is {damaged[0]}")
    return leaves


def check_fit(saved: Mapping[str, str], template: Mapping[str, Any]) -> None:
    """Raises MismatchError that names missing, extra and differently shaped leaves."""
    missing = sorted(template.keys() - saved.keys())
    extra = sorted(saved.keys() - template.keys())
    kinds = {k: f"{v.dtype}{list(v.shape)}" for k, v in template.items() if k in saved}
    shapes = [f"{k} is {s}, not {kinds[k]}" for k in kinds if (s := saved[k].split(":")[0]) != kinds[k]]
    parts = [f"missing: {missing}"] * bool(missing) + [f"unknown: {extra}"] * bool(extra) + shapes
    if parts:
        raise MismatchError("the checkpoint does not fit this state; " + "; ".join(parts))


def _paths(state: TrainState) -> tuple[list[tuple[str, Any]], Any]:
    flat, treedef = tree_flatten_with_path(state)
    return [(keystr(path), leaf) for path, leaf in flat], treedef


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _unkey(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _rekey(leaf: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf
