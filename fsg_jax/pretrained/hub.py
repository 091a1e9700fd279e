"""A file of a Hugging Face repository at a pinned revision and with a known digest."""

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fsg_jax._checks import expect
from fsg_jax.data.extras import import_extra

FORM = "hf:OWNER/REPOSITORY@REVISION/FILE#sha256=DIGEST, a commit of 40 hexadecimal digits and a SHA-256 of 64"
_SPEC = re.compile(r"hf:([\w.-]+/[\w.-]+)@([0-9a-f]{40})/([^#]+)#sha256=([0-9a-f]{64})", re.ASCII)


class HubFile(NamedTuple):
    """What `FORM` says."""

    repository: str
    revision: str
    file: str
    sha256: str


def parse(spec: str) -> HubFile:
    """The parts of a text of `FORM`. Raises ValueError unless it is one; a branch or tag is no revision."""
    match = _SPEC.fullmatch(spec)
    expect(match, "name_or_path", FORM, repr(spec))
    found = HubFile(*match.groups())  # type: ignore[union-attr]
    check_name(found.file, spec)
    return found


def check_name(file: str, source: str) -> None:
    """Raises ValueError unless `file` names a file inside its folder, by a relative path without ``..``."""
    parts = file.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and not set(file) & set("\\:\0")
    expect(plain and not PurePosixPath(file).is_absolute(), source, "the name of a file inside its folder", repr(file))


def fetch(file: HubFile) -> Path:
    """The path of the file in the cache of huggingface_hub, where it is downloaded to; its digest is not yet compared.

    Raises:
      OSError: it is not in the cache, and cannot be downloaded.
      ImportError: huggingface_hub is not installed.
    """
    library = import_extra("huggingface_hub", "pretrained")
    try:
        return Path(library.hf_hub_download(file.repository, file.file, revision=file.revision))
    except Exception as error:  # each of its backends has errors of its own
        where = f"hf:{file.repository}@{file.revision}/{file.file}"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OSError(f"{where}: expected to be in the cache or to be downloaded, found {reason}") from error


def check_sha256(data: bytes, wanted: str, name: str) -> None:
    """Raises ValueError unless `data` has the SHA-256 `wanted`."""
    found = hashlib.sha256(data).hexdigest()
    expect(found == wanted, name, f"sha256 {wanted}", f"{found}: damaged, or another version")
