"""Example panels of the networks' inputs: PNG files that the records name, embedded."""

import base64
from pathlib import Path

from experiments.report.records import Arms

_PNG = b"\x89PNG\r\n\x1a\n"
_PER_STREAMS = 3


def embed(directory: Path, arms: Arms) -> tuple[dict[str, list[str]], list[str]]:
    """Data URIs by streams, the first panels of the first run that has some; and what could not be shown."""
    shown: dict[str, list[str]] = {}
    problems: list[str] = []
    for runs in arms.values():
        for record in runs.values():
            streams = " + ".join(record["streams"])
            if record.get("panels") and streams not in shown:
                found = [_read(directory / name, problems) for name in record["panels"][:_PER_STREAMS]]
                shown[streams] = [uri for uri in found if uri]
    return {streams: uris for streams, uris in shown.items() if uris}, problems


def _read(path: Path, problems: list[str]) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        problems.append(f"{path.name}: the panel cannot be read ({error.strerror}).")
        return ""
    if not content.startswith(_PNG):
        problems.append(f"{path.name}: the panel is not a PNG image.")
        return ""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
