"""The site that ``make docs`` makes: links, names, nothing from elsewhere; the commands of all pages."""

import argparse
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import tyro

import fsg_jax
from experiments.errors import UserError

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]
SITE, STAGED = ROOT / "build/site", ROOT / "build/pages"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FETCHED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """Targets of a page: its ids, its links, and what a browser fetches to show it."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.fetched = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        """Collects."""
        values = dict(attrs)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        fetched = [values[key] for name, key in FETCHED if name == tag and values.get(key)]
        if (tag, values.get("rel")) not in (("link", "canonical"), ("link", "prev"), ("link", "next")):
            self.fetched += fetched


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    found = {path.resolve(): Page(path) for path in SITE.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 40, "the site is not there: make docs"
    return found


def test_every_link_leads_somewhere(pages):
    dead = []
    for path, page in pages.items():
        for link in page.links + page.fetched:
            target, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            if file.is_dir():
                file /= "index.html"
            known = pages[file].ids if file in pages else set()
            if not file.exists() or (anchor and file in pages and unquote(anchor) not in known):
                dead.append(f"{path.relative_to(SITE.resolve())}: {link}")
    assert not dead, "\n".join(dead)


def test_links_of_the_pages_lead_somewhere_in_the_repository_too():
    dead = []
    for path in [*PAGES, *ROOT.glob("*.md"), ROOT / "examples/README.md"]:
        for target in re.findall(r"\]\(([^)\s#]+)", path.read_text()):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                dead.append(f"{path.relative_to(ROOT)}: {target}")
    assert not dead


def test_a_page_needs_no_network(pages):
    elsewhere = {url for page in pages.values() for url in page.fetched if re.match(r"(https?:)?//", url)}
    assert not elsewhere


def test_every_public_name_is_in_the_reference(pages):
    """Functions, classes and methods of all public modules, and what `fsg_jax` itself has."""
    ids = set().union(*(page.ids for path, page in pages.items() if path.parent.name == "api"))
    modules = [m.name for m in pkgutil.walk_packages(fsg_jax.__path__, "fsg_jax.") if "._" not in m.name]
    wanted = set(modules)
    for module in map(importlib.import_module, modules):
        for name, thing in vars(module).items():
            here = getattr(thing, "__module__", None) == module.__name__
            if here and not name.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing)):
                wanted.add(f"{module.__name__}.{name}")
    assert len(wanted) > 500
    assert not sorted(wanted - ids)
    listed = (STAGED / "api/index.md").read_text()
    assert [name for name in fsg_jax.__all__ if f"[`fsg.{name}`]" not in listed] == []


def test_the_search_knows_the_pages(pages):
    entries = json.loads((SITE / "search/search_index.json").read_text())["docs"]
    places = {entry["location"].partition("#")[0] for entry in entries}
    assert {"routing.html", "own_model.html", "api/gates.html", "notebooks/polyps.html"} <= places


def test_what_blocks_print_is_on_the_pages():
    """Python blocks of the guides were run: those that print are followed by their output."""
    for path in (ROOT / "docs").glob("*.md"):
        printing = len(re.findall(r"^```python\n(?:(?!^```).)*?^ *print\(", path.read_text(), re.DOTALL | re.MULTILINE))
        assert (STAGED / path.name).read_text().count("\n```text\n") >= printing, path.name


def test_notebooks_were_executed_without_warnings():
    for path in (ROOT / "docs/notebooks").glob("*.py"):
        notebook = json.loads((STAGED / f"notebooks/{path.stem}.ipynb").read_text())
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert cells
        assert all(cell["execution_count"] for cell in cells)
        assert not [out for cell in cells for out in cell["outputs"] if out.get("name") == "stderr"], path.name


def commands() -> list[str]:
    """What the pages tell to type, a line each, without comments."""
    found = []
    for path in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
            lines = [] if language else block.replace("\\\n", " ").splitlines()
            found += [line.partition("  #")[0].strip() for line in lines if "python -m experiments." in line]
    return sorted(set(found))


class ParsedError(Exception):
    """The command line was understood."""


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_pages_is_understood(line, monkeypatch):
    """Its module is there, and takes these flags and values; nothing is run."""
    words = shlex.split(line)
    module, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]

    def understood(real):
        def parse(*args, **kwargs):
            raise ParsedError(real(*args, **kwargs))

        return parse

    monkeypatch.setattr(tyro, "cli", understood(tyro.cli))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", understood(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr(sys, "argv", ["prog", *arguments])
    package = importlib.util.find_spec(module).submodule_search_locations
    with pytest.raises((ParsedError, FileNotFoundError, UserError)):  # or that its files are not there
        importlib.import_module(f"{module}.__main__" if package else module).main()


def test_make_targets_of_the_pages_are_there():
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PAGES:
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)) <= made, path.name


def test_the_drawing_shows_every_room():
    command = [sys.executable, ROOT / "docs/drawing.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rooms = {p.name for p in (ROOT / "fsg_jax").iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert not [room for room in rooms if f">{room}<" not in done.stdout]
