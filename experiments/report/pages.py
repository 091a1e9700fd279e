"""Templates to pages: report.md and the self-contained report.html."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

_SHARED = Path(__file__).parent


def write_pages(
    templates: Path, content: Mapping[str, Any], figures: Mapping[str, Any], target: Path
) -> tuple[Path, Path]:
    """Render template.md.j2 and template.html.j2 into `target`, made if missing; return the two paths.

    Args:
        templates: Directory of the templates; they may include the files beside this module, too.
        content: Variables of both templates.
        figures: Further variables of the HTML template.
        target: Directory of the report.
    """
    texts = {
        "report.md": _environment(templates, autoescape=False).get_template("template.md.j2").render(content),
        "report.html": _environment(templates, autoescape=True)
        .get_template("template.html.j2")
        .render(content, **figures),
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _write(target / name, text)
    return target / "report.md", target / "report.html"


def _environment(templates: Path, autoescape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, _SHARED]),
        undefined=jinja2.StrictUndefined,
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _write(path: Path, text: str) -> None:
    """Write through a temporary file beside it, so that a reader never sees half a report."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
