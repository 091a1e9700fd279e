"""Writes the pages of the site to ``build/pages``, from which MkDocs makes it: ``python docs/stage.py [PAGE ...]``.

Python blocks of a page are run in order, in one namespace a page, and what they print is put below them. Notebooks,
kept as text, are executed. Recorded results, examples, pages of the project and one page of API a room of the library
are added. Whatever fails stops the command. With PAGE only these are run again, e.g. ``routing.md``.
"""

import contextlib
import inspect
import io
import os
import pkgutil
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import drawing

import fsg_jax
from experiments import xla_flags

ROOT = Path(__file__).parents[1]
DOCS, EXAMPLES, RESULTS, PAGES = ROOT / "docs", ROOT / "examples", ROOT / "experiments/results", ROOT / "build/pages"
LINKS = {  # from a place in the repository to the page of the site
    "../experiments/results)": "results/index.md)",
    "../experiments/results/": "results/",
    "../examples/README.md": "examples.md",
    "../README.md": "index.md",
    "../": "",
}
BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"^!\[.*\]\((.*\.svg)\)$", re.MULTILINE)
DRAWING = "<!-- drawing -->"
CONSTANTS = {  # they know neither where they are nor what they are
    "GATES": ("fsg_jax.typing.GATES", "Name of the collection of gate logits."),
    "ROUTINGS": ("fsg_jax.routing.modes.ROUTINGS", "The routing modes by name."),
    "TrainStep": ("fsg_jax.training.step.TrainStep", "``step(state, batch, gate_batch=None) -> (state, metrics)``."),
}
QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
"""Set for pages, whose time is that of compiling, and not for notebooks, which train."""
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def run_blocks(markdown: str, name: str) -> str:
    """Runs the Python blocks of a page, and returns it with their output below them."""
    namespace: dict = {"__name__": "__main__"}

    def run(match: re.Match) -> str:
        lines_before = markdown.count("\n", 0, match.start()) + 1
        code = compile("\n" * lines_before + match[1], name, "exec")  # errors tell the line of the page
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, namespace)
        printed = output.getvalue().rstrip()
        return match[0] + (f"\n```text\n{printed}\n```\n" if printed else "")

    return BLOCK.sub(run, markdown)


def on_site(text: str) -> str:
    """Turns links to places in the repository into those of the site."""
    for place, page in LINKS.items():
        text = text.replace(f"]({place}", f"]({page}")
    return text


def stage_page(path: Path) -> None:
    """Runs a page; links that leave the folder become those of the site."""
    xla_flags.compile_quickly()
    text = run_blocks(path.read_text(), str(path.relative_to(ROOT)))
    text = re.sub(r"\]\(notebooks/(\w+)\.py\)", r"](notebooks/\1.md)", text)
    text = on_site(text)
    # Pictures inside the page have the colours of its theme.
    text = PICTURE.sub(lambda match: f"<div>{(DOCS / match[1]).read_text()}</div>", text)
    if DRAWING in text:
        text = text.replace(DRAWING, f"<div>{drawing.draw()}</div>")
    (PAGES / path.name).write_text(text)


def stage_notebook(path: Path) -> None:
    """Executes a notebook; writes it as a page with its pictures, and as a notebook to take away."""
    import jupytext
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import ExecutePreprocessor

    os.environ.pop(QUICK, None)
    xla_flags.compile_quickly(xla_flags.ONE_PART)
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    ExecutePreprocessor(timeout=300, coalesce_streams=True).preprocess(notebook, {"metadata": {"path": str(ROOT)}})
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": path.stem})
    folder = PAGES / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    jupytext.write(notebook, folder / f"{path.stem}.ipynb")
    for name, data in resources["outputs"].items():
        (folder / name).write_bytes(data)
    title, _, rest = text.strip().partition("\n")
    (folder / f"{path.stem}.md").write_text(f"{title}\n\n[The notebook with its outputs]({path.stem}.ipynb)\n{rest}\n")


def stage_others() -> None:
    """Copies results and the pages of the project; writes pages of the examples and of the API."""
    for path in [p for p in RESULTS.rglob("*") if p.suffix in (".md", ".svg", ".png")]:
        name = path.relative_to(RESULTS).as_posix().replace("README", "index")
        (PAGES / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, PAGES / "results" / name)
    for path in [*(ROOT / name for name in PROJECT), DOCS / "style.css"]:
        (PAGES / path.name).write_text(path.read_text().replace("](docs/", "]("))
    programs = [f"## {p.name}\n\n```python\n{p.read_text()}```\n" for p in sorted(EXAMPLES.glob("*.py"))]
    text = re.sub(r"\]\((\w+)\.py\)", r"](#\1py)", (EXAMPLES / "README.md").read_text())
    text = on_site(text).replace("[studies](studies)", "`examples/studies`")
    (PAGES / "examples.md").write_text("\n".join([text, *programs]))
    (PAGES / "api").mkdir(exist_ok=True)
    for room, modules in rooms().items():
        options = "    options:\n      members: false\n"  # of a package: what it hands on is shown where it is
        entries = [f"::: {name}\n{options if is_package else ''}" for name, is_package in modules]
        text = f"# {room}\n\n" + "\n".join(entries)
        (PAGES / f"api/{room}.md").write_text(text)
    (PAGES / "api/index.md").write_text(names_page())


def names_page() -> str:
    """The names that `fsg_jax` itself has, each with the first line of its docstring and a link to where it is."""
    rows = ["# The names of fsg_jax", "", "`import fsg_jax as fsg` has these; the rooms have more.", ""]
    rows += ["| name | |", "| --- | --- |"]
    for name in fsg_jax.__all__:
        thing = getattr(fsg_jax, name)
        home = thing.__name__ if inspect.ismodule(thing) else f"{getattr(thing, '__module__', '')}.{name}"
        path, line = CONSTANTS.get(name) or (home, (inspect.getdoc(thing) or "").partition("\n")[0])
        line = line.replace("|", "\\|")
        rows.append(f"| [`fsg.{name}`][{path}] | {line} |")
    return "\n".join(rows) + "\n"


def rooms() -> dict[str, list[tuple[str, bool]]]:
    """The public modules of the library by room, the first part of their path, and whether each is a package."""
    found: dict[str, list[str]] = {}
    for module in pkgutil.walk_packages(fsg_jax.__path__, "fsg_jax."):
        parts = module.name.split(".")
        if not any(part.startswith("_") for part in parts):
            found.setdefault(parts[1], []).append((module.name, module.ispkg))
    return found


def timed(job: Callable[[Path], None], path: Path) -> float:
    """Does a job; its seconds."""
    began = time.perf_counter()
    job(path)
    return time.perf_counter() - began


def main(names: list[str]) -> None:
    """Command line."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` in a notebook is this one
    os.environ |= {"JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1", "PATH": path, QUICK: "1"}
    notebooks, pages = sorted(DOCS.glob("notebooks/*.py")), sorted(DOCS.glob("*.md"))
    if not names:
        shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True, exist_ok=True)
    jobs = [(stage_notebook, path) for path in notebooks] + [(stage_page, path) for path in pages]
    context = get_context("spawn")  # each page in a process of its own
    with ProcessPoolExecutor(os.cpu_count(), context, max_tasks_per_child=1) as pool:
        wanted = [(job, path) for job, path in jobs if not names or path.name in names]
        for (_, path), future in zip(wanted, [pool.submit(timed, *work) for work in wanted], strict=True):
            print(f"{path.name}: {future.result():.0f} s", flush=True)
    stage_others()


if __name__ == "__main__":
    main(sys.argv[1:])
