"""`save_pretrained`: a folder with a model and its weights, and how it is read back."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fsg_jax._checks import check_shapes, expect
from fsg_jax._files import TEMPORARY, local, parse_json, read_bytes, replacing, write_json, write_text
from fsg_jax.data.extras import import_extra
from fsg_jax.pretrained.fit import Pretrained, example, shapes_of
from fsg_jax.pretrained.hub import check_name, check_sha256
from fsg_jax.pretrained.model_json import model_from_json, model_to_json
from fsg_jax.pretrained.preprocessing import Preprocessing, from_json
from fsg_jax.pretrained.weight_files import LARGEST_FILE, check_finite, read_weights
from fsg_jax.typing import GATES, Variables

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = "fsg_jax 1"
FIELDS = {"format", "model", "files", "preprocessing"}


def save_pretrained(
    folder: str | os.PathLike,
    model: nn.Module,
    variables: Variables,
    *,
    card: Mapping[str, Any] | str | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Writes a model and its weights for `load_pretrained`, whole or not at all.

    The folder gets ``config.json`` (class and attributes of the model, preprocessing, digest of the weights),
    ``model.safetensors`` (every collection: weights, gates, statistics; bit for bit) and ``README.md``, a model card.
    Needs the ``pretrained`` extra.

    Args:
      folder: new, empty, or of an earlier call, whose files are then replaced.
      model: a `ResNet`, `EfficientNet`, `ViT` or `MultiStream`.
      variables: all of the model's; arrays of numbers, all finite.
      card: facts for the card, a mapping (a table) or a text in Markdown: data, epochs, seed, accuracy, licence.
      preprocessing: how images are prepared.

    Raises:
      ValueError: an attribute that cannot be written (a function of one's own, say), which is named; variables that do
        not fit the model, all being named, or are not finite; a folder with other files.
      ImportError: safetensors is not installed.
    """
    library, folder = import_extra("safetensors.numpy", "pretrained"), local(folder)
    config: dict[str, Any] = {"format": FORMAT, "model": model_to_json(model)}
    config["preprocessing"] = None if preprocessing is None else _checked(preprocessing)
    flat = {path: np.ascontiguousarray(leaf).reshape(np.shape(leaf)) for path, leaf in flatten_dict(variables).items()}
    slashes = ["/".join(path) for path in flat if any("/" in part for part in path)]
    expect(not slashes, "variables", "names without /", slashes)
    tensors = {"/".join(path): leaf for path, leaf in flat.items()}
    check_finite(tensors, "variables")
    _check(model, flat, "variables")
    content = library.save(tensors)
    config["files"] = {WEIGHTS: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    old = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    other = sorted(old - {CONFIG, WEIGHTS, CARD})
    expect(
        not other and not folder.is_file(), str(folder), "a new folder, or one of save_pretrained", other or "a file"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as new:
        new.mkdir()
        (new / WEIGHTS).write_bytes(content)
        write_json(new / CONFIG, config)
        write_text(new / CARD, _card(model, flat, card, preprocessing))
        if old:  # a folder with files cannot be replaced in one step
            folder.rename(aside := folder.with_name(f"{folder.name}.old.{os.getpid()}{TEMPORARY}"))
    if old:
        shutil.rmtree(aside)


def _checked(preprocessing: Preprocessing) -> dict[str, Any]:
    value = json.loads(json.dumps(preprocessing._asdict()))
    from_json(value, "preprocessing")
    return value


def _check(model: nn.Module, flat: Mapping[tuple[str, ...], Any], name: str) -> None:
    params = unflatten_dict(flat).get("params", {})
    wanted = {"/".join(path): leaf.shape for path, leaf in shapes_of(model, example(model, params)).items()}
    found = {"/".join(path): np.shape(leaf) for path, leaf in flat.items()}
    check_shapes(found, wanted, name, f"the tensors of {type(model).__name__}")


def read_saved(config: bytes, find: Callable[[str], Path], name: str) -> tuple[Pretrained, str]:
    """What `save_pretrained` wrote, and the rule by which its positions are resized.

    Args:
      config: the content of ``config.json``.
      find: the path of another file of the folder by its name.
      name: of the folder, for errors.

    Raises:
      ValueError: the files are not as they were written, or of a later version; every wrong leaf is named.
    """
    value = parse_json(config, f"{name}: {CONFIG}")
    sound = isinstance(value, dict) and value.get("format") == FORMAT and set(value) == FIELDS
    found = value.get("format", sorted(value)) if isinstance(value, dict) else value
    expect(sound, f"{name}: {CONFIG}", f"the format {FORMAT!r} with {', '.join(sorted(FIELDS))}", found)
    files = value["files"]
    expect(isinstance(files, dict), f"{name}: {CONFIG}: files", "a JSON object", files)
    for file in files:
        check_name(file, f"{name}: {CONFIG}: files")
    entry = files.get(WEIGHTS)
    sound = set(files) == {WEIGHTS} and isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
    expect(sound, f"{name}: {CONFIG}: files", f"{WEIGHTS} with its sha256", files)
    try:
        model = model_from_json(value["model"], f"{name}: {CONFIG}")
    except RecursionError as error:
        raise ValueError(f"{name}: {CONFIG}: expected attributes of a model, found too deep ones") from error
    shown = value["preprocessing"]
    preprocessing = None if shown is None else from_json(shown, f"{name}: {CONFIG}: preprocessing")
    data = read_bytes(find(WEIGHTS), LARGEST_FILE)
    check_sha256(data, entry["sha256"], f"{name}: {WEIGHTS}")
    flat = {tuple(key.split("/")): leaf for key, leaf in read_weights(f"{name}/{WEIGHTS}", data).items()}
    _check(model, flat, f"{name}: {WEIGHTS}")
    variables = jax.tree.map(jax.numpy.asarray, unflatten_dict(flat))
    rule = "google" if getattr(model, "gelu", "") == "tanh" else getattr(model, "interpolate", None) or "timm"
    return Pretrained(model, variables, preprocessing), rule


def _card(
    model: nn.Module, flat: Mapping[tuple[str, ...], Any], card: Mapping[str, Any] | str | None, images: Any
) -> str:
    """The model card in Markdown; what the caller says comes last."""
    count = sum(leaf.size for path, leaf in flat.items() if path[0] == "params")
    gates = sum(leaf.size for path, leaf in flat.items() if path[0] == GATES)
    facts: dict[str, Any] = {"architecture": type(model).__name__}
    facts |= {name: getattr(model, name) for name in ("num_classes", "tasks") if hasattr(model, name)}
    facts |= {"parameters": count, "gates": gates}
    if images is not None:
        facts |= {f"images: {field}": value for field, value in images._asdict().items()}
    if isinstance(card, Mapping):
        facts |= card
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items()]
    lines = [
        "---",
        "library_name: fsg_jax",
        "---",
        "",
        f"# {type(model).__name__}",
        "",
        "| | |",
        "| --- | --- |",
        *rows,
    ]
    load = ["", "```python", "import fsg_jax as fsg", "", "pretrained = fsg.load_pretrained(FOLDER)", "```", ""]
    return "\n".join([*lines, *load, *([card, ""] if isinstance(card, str) else [])])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
