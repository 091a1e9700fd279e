"""Export: a trained model as one file that other programs run, StableHLO (by `jax.export`) or ONNX (by jax2onnx).

Beside ``FILE`` lies ``FILE.json``, which says what the file is: platforms, inputs, outputs, preprocessing, digest.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import fsg_jax
from fsg_jax._checks import check_choice, expect
from fsg_jax._files import digest, read_json, replacing, write_json
from fsg_jax.data.extras import import_extra
from fsg_jax.linen.forward import Forward, find_flag
from fsg_jax.routing.labels import paths_of
from fsg_jax.typing import PyTree

FORMATS = {"stablehlo": "model.stablehlo", "onnx": "model.onnx"}
"""Names of the files."""

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
TOLERANCE = 1e-4
"""Largest difference between an exported model and the model, relative to the largest output or to 1."""

BATCH = "batch"
"""What the first axis of inputs and outputs is called; it may have any size from 1 on."""


class Artifact(NamedTuple):
    """An exported model.

    Attributes:
      facts: what the file beside it says.
      call: from the inputs of the model, with any batch size, to its outputs on the host.
    """

    facts: dict[str, Any]
    call: Callable[[Any], Any]


def export_stablehlo(
    folder: Path,
    model: nn.Module,
    variables: Mapping[str, PyTree],
    inputs: Any,
    *,
    platforms: Sequence[str] = ("cpu", "cuda"),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes ``folder/model.stablehlo``, in evaluation mode and with the weights inside; jax and flatbuffers run it::

        jax.export.deserialize(bytearray(Path("model.stablehlo").read_bytes())).call(images)

    The platforms need not be there. Where the one of this process is among them, the file is read again and compared
    with the model on random inputs.

    Args:
      folder: made if missing.
      model: called as ``model(inputs)``, with the flag that tells whether it trains.
      variables: of the model, by collection.
      inputs: an example, arrays or shapes (batch, ...) in any pytree; all share one batch size, which becomes free.
      platforms: some of `PLATFORMS`.
      facts: more to say in the file beside it, such as the preprocessing; JSON-able.

    Returns:
      What the file beside it says.

    Raises:
      ValueError: variables that are not finite, inputs without a batch axis, an unknown platform, a model whose shapes
        do not work for any batch size, or outputs that differ by more than `TOLERANCE`.
      ImportError: flatbuffers is not installed (extra ``export``).
    """
    import_extra("flatbuffers", "export")
    expect(platforms, "platforms", f"some of {', '.join(PLATFORMS)}", "none")
    for platform in platforms:
        check_choice("platforms", platform, PLATFORMS)
    forward, examples = _forward(model, variables), _examples(inputs)
    try:
        symbolic = jax.export.symbolic_args_specs((examples,), f"{BATCH}, ...")
        exported = jax.export.export(jax.jit(forward), platforms=tuple(platforms))(*symbolic)
    except (TypeError, NotImplementedError, jax.errors.InconclusiveDimensionOperation) as error:
        raise ValueError(f"model: expected one that takes any batch size, found {error}") from error
    content, difference = bytes(exported.serialize()), None
    if _platform() in platforms:
        difference = _compare("model.stablehlo", _from_stablehlo(content, "model.stablehlo"), forward, examples)
    about = {"platforms": list(platforms), "calling_convention_version": exported.calling_convention_version}
    return _write(folder, "stablehlo", content, forward, examples, about, difference, facts)


def export_onnx(
    folder: Path,
    model: nn.Module,
    variables: Mapping[str, PyTree],
    inputs: Any,
    *,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes ``folder/model.onnx``, converted by jax2onnx and compared with the model by onnxruntime on the CPU.

    Inputs and outputs are those of the model: images are (batch, height, width, channels). Further arguments, and what
    is returned, are those of `export_stablehlo`; the file runs wherever its operators do.

    Raises:
      ValueError: as `export_stablehlo`; an operation that the converter does not know; or inputs that are not float32.
      ImportError: jax2onnx or onnxruntime is not installed (extra ``export``).
    """
    jax2onnx, _ = import_extra("jax2onnx", "export"), import_extra("onnxruntime", "export")
    forward, examples = _forward(model, variables), _examples(inputs)
    leaves, treedef = jax.tree.flatten(examples)
    names = _names(examples, "image")
    for name, leaf in zip(names, leaves, strict=True):
        expect(leaf.dtype == jnp.float32, f"input {name}", "float32, for ONNX", leaf.dtype)
    outputs = _names(jax.eval_shape(forward, examples), "outputs")

    def flat(*leaves: Any) -> Any:
        with mock.patch.object(nn, "max_pool", _padded_first(nn.max_pool)):
            return tuple(jax.tree.leaves(forward(jax.tree.unflatten(treedef, leaves))))

    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)  # it warns of every constant without a type
    shapes = [(BATCH, *leaf.shape[1:]) for leaf in leaves]
    try:
        with jax.numpy_rank_promotion("allow"):  # the converter's own operations promote
            proto = jax2onnx.to_onnx(flat, shapes, input_names=names, output_names=outputs)
    except Exception as error:  # of any type, from the rule of any operation
        raise ValueError(f"model: expected operations that jax2onnx converts, found {error}") from error
    del proto.graph.value_info[:]  # the shapes in between that the converter notes are not always right
    content = proto.SerializeToString()
    difference = _compare("model.onnx", _from_onnx(content, "model.onnx"), forward, examples)
    about = {"platforms": ["onnx"], "opset": proto.opset_import[0].version, "jax2onnx": version("jax2onnx")}
    return _write(folder, "onnx", content, forward, examples, about, difference, facts)


def load_artifact(path: Path) -> Artifact:
    """An exported model, ready to run here.

    Args:
      path: the file, or its folder, in which StableHLO goes before ONNX.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, is not what the file beside it says, or was exported for other platforms.
      ImportError: flatbuffers, or for ONNX onnxruntime, is not installed (extra ``export``).
    """
    found = [path / name for name in FORMATS.values() if (path / name).is_file()] if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"{path}: expected {' or '.join(FORMATS.values())}, found none")
    path = found[0]
    facts = read_json(_beside(path))
    check_choice(f"{_beside(path)}: format", facts.get("format"), FORMATS)
    expect(facts.get("sha256") == digest(path), str(path), f"the SHA-256 of {_beside(path).name}", "another")
    content = path.read_bytes()
    read = _from_onnx if facts["format"] == "onnx" else _from_stablehlo
    return Artifact(facts, read(content, str(path)))


def _forward(model: nn.Module, variables: Mapping[str, PyTree]) -> Callable[[Any], Any]:
    """The model in evaluation mode, its weights being constants."""
    values = jax.tree.map(jnp.asarray, dict(variables))
    leaves = zip(paths_of(values), jax.tree.leaves(values), strict=True)
    bad = [path for path, leaf in leaves if not jnp.isfinite(leaf).all()]
    expect(not bad, "variables", "finite values", f"NaN or Inf in {', '.join(bad[:3])}")
    forward = Forward(model, find_flag(model, "auto"), (), ())
    return lambda inputs: forward.evaluate(values, (inputs,))[0]


def _examples(inputs: Any) -> Any:
    """The inputs as shapes."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), inputs)
    found = [leaf.shape for leaf in jax.tree.leaves(shapes)]
    right = found and all(found) and len({shape[0] for shape in found}) == 1
    expect(right, "inputs", "arrays with one batch size on their first axis", f"shapes {found}")
    return shapes


def _names(tree: Any, single: str) -> list[str]:
    """A name for every leaf: its path, or `single` for a tree that is one."""
    return [path or single for path in paths_of(tree)]


def _padded_first(pool: Callable[..., Any]) -> Callable[..., Any]:
    """The converter's `nn.max_pool`, which knows no explicit padding, for images that are padded before."""

    def max_pool(x: Any, window_shape: Any, strides: Any = None, padding: Any = "VALID") -> Any:
        if not isinstance(padding, str):
            x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
            padding = "VALID"
        return pool(x, window_shape=window_shape, strides=strides, padding=padding)

    return max_pool


def _compare(name: str, call: Callable[[Any], Any], forward: Callable[[Any], Any], examples: Any) -> float:
    """The largest difference on random inputs, of a batch of another size than that of the example."""
    rng = np.random.default_rng(0)
    size = 2 + (jax.tree.leaves(examples)[0].shape[0] == 2)
    inputs = jax.tree.map(lambda leaf: rng.normal(size=(size, *leaf.shape[1:])).astype(leaf.dtype), examples)
    found, wanted = (jax.tree.leaves(jax.device_get(outputs)) for outputs in (call(inputs), jax.jit(forward)(inputs)))
    shapes = [np.shape(leaf) for leaf in wanted]
    expect([np.shape(leaf) for leaf in found] == shapes, name, f"outputs {shapes}", [np.shape(leaf) for leaf in found])
    difference = max(
        float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max() / max(1, np.abs(b).max()))
        for a, b in zip(found, wanted, strict=True)
    )
    expect(difference <= TOLERANCE, name, f"outputs within {TOLERANCE} of the model's", difference)
    return difference


def _write(
    folder: Path,
    kind: str,
    content: bytes,
    forward: Callable[[Any], Any],
    examples: Any,
    about: dict[str, Any],
    difference: float | None,
    facts: Mapping[str, Any] | None,
) -> dict[str, Any]:
    path = folder / FORMATS[kind]
    said = {"format": kind, "file": path.name, "sha256": hashlib.sha256(content).hexdigest(), **about}
    said |= {
        "inputs": _signature(examples, "image"),
        "outputs": _signature(jax.eval_shape(forward, examples), "outputs"),
    }
    said |= {"versions": {"jax": version("jax"), "fsg_jax": fsg_jax.__version__}, "difference": difference}
    expect(not said.keys() & (facts or {}).keys(), "facts", f"none of {', '.join(said)}", sorted(facts or {}))
    said |= json.loads(json.dumps(dict(facts or {})))
    folder.mkdir(parents=True, exist_ok=True)
    _beside(path).unlink(missing_ok=True)  # no file is ever beside the description of another
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    write_json(_beside(path), said)
    return said


def _signature(tree: Any, single: str) -> list[dict[str, Any]]:
    leaves = zip(_names(tree, single), jax.tree.leaves(tree), strict=True)
    return [{"name": n, "shape": [BATCH, *leaf.shape[1:]], "dtype": str(leaf.dtype)} for n, leaf in leaves]


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _platform() -> str:
    """The platform of this process, by the names of `PLATFORMS`."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"


def _from_stablehlo(content: bytes, name: str) -> Callable[[Any], Any]:
    import_extra("flatbuffers", "export")
    try:
        exported = jax.export.deserialize(bytearray(content))
    except Exception as error:  # of any type, from the reader of its container
        raise ValueError(
            f"{name}: expected an artifact of jax.export, found {type(error).__name__}: {error}"
        ) from error
    wanted = f"to run on {' or '.join(exported.platforms)}, for which it was exported"
    expect(_platform() in exported.platforms, name, wanted, _platform())
    call = jax.jit(exported.call)
    return lambda inputs: jax.device_get(call(inputs))


def _from_onnx(content: bytes, name: str) -> Callable[[Any], Any]:
    onnxruntime = import_extra("onnxruntime", "export")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of choices of its own
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of its own types
        raise ValueError(f"{name}: expected an ONNX model that onnxruntime runs, found {error}") from error
    names = [found.name for found in session.get_inputs()]

    def call(inputs: Any) -> Any:
        leaves = dict(zip(names, map(np.asarray, jax.tree.leaves(inputs)), strict=True))
        outputs = session.run(None, leaves)
        return outputs[0] if len(outputs) == 1 else outputs

    return call
