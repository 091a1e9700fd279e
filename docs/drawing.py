"""The drawing of the rooms, from the imports of the code: who imports whom, lower rooms first."""

from xml.sax.saxutils import escape

import grimp
import networkx as nx

WIDTH, ROW, BOX = 880, 84, (110, 42)
ON_TOP = {"fsg_jax.gates.fold", "fsg_jax.gates.prune"}  # they change whole models, and import what gates do not
WINGS = {"endoscopy", "bench", "report"}
STYLE = """<style>
  .drawing text { fill: var(--md-default-fg-color, #777); text-anchor: middle; }
  .drawing rect { fill: var(--md-code-bg-color, none); stroke: var(--md-default-fg-color--light, #888); }
  .drawing path { fill: none; stroke: var(--md-default-fg-color--lighter, #999); stroke-width: 1.3; }
  .drawing .small { font-size: 11px; fill: var(--md-default-fg-color--light, #888); }
</style>"""


def room(module: str) -> str:
    """A package of the library, or `experiments` with or without its wings, which the drawing shows as one box."""
    parts = module.split(".")
    if module in ON_TOP:
        return "fold, prune"
    whole = parts[0] == "experiments" and not WINGS.intersection(parts[1:2])
    return parts[0] if whole else ".".join(parts[:2])


def rooms_graph() -> tuple[nx.DiGraph, dict[str, int]]:
    """Edges from a room to those that it imports, and the number of modules in each."""
    imports = grimp.build_graph("fsg_jax", "experiments", cache_dir=None)
    graph, sizes = nx.DiGraph(), {}
    for module in imports.modules - {"fsg_jax"}:
        sizes[room(module)] = sizes.get(room(module), 0) + 1
        graph.add_node(room(module))
        for other in imports.find_modules_directly_imported_by(module):
            if room(other) not in (room(module), "fsg_jax"):
                graph.add_edge(room(module), room(other))
    return graph, sizes


def draw() -> str:
    """An SVG: rooms in layers, each above all that it imports; edges that others imply are left out."""
    graph, sizes = rooms_graph()
    graph.remove_nodes_from([n for n in graph if n.split(".")[-1].startswith("_") or n == "fsg_jax.typing"])
    whole = nx.condensation(graph)  # rooms that import each other are one box
    shown = nx.transitive_reduction(whole)
    order = list(reversed(list(nx.topological_generations(shown.reverse()))))
    place: dict[int, tuple[float, float]] = {}
    for _ in range(8):  # boxes move to the mean of their neighbours, which leaves few crossings
        for y, row in enumerate(order):
            near = {n: [place[m][0] for m in (*shown.predecessors(n), *shown.successors(n)) if m in place] for n in row}
            row.sort(key=lambda n: (sum(near[n]) / len(near[n]) if near[n] else 0, min(whole.nodes[n]["members"])))
            place |= {n: ((i + 0.5) * WIDTH / len(row), (y + 0.5) * ROW) for i, n in enumerate(row)}
    parts = []
    for a, b in shown.edges:
        (x1, y1), (x2, y2) = place[a], place[b]
        middle = (y1 + y2) / 2
        start, end = f"{x1:.0f} {y1 + BOX[1] / 2:.0f}", f"{x2:.0f} {y2 - BOX[1] / 2:.0f}"
        parts.append(f'<path d="M{start}C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {end}"/>')
    for n, (x, y) in place.items():
        members = sorted(whole.nodes[n]["members"])
        name = " + ".join(member.removeprefix("fsg_jax.").split(".")[-1] for member in members)
        files = sum(sizes[m] for m in members)
        width = max(BOX[0], 8 * len(name))
        parts.append(
            f'<rect x="{x - width / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{width}" height="{BOX[1]}" rx="4"/>'
        )
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}">{escape(name)}</text>')
        parts.append(f'<text class="small" x="{x:.0f}" y="{y + 14:.0f}">{files} modules</text>')
    height = ROW * len(order)
    head = f'<svg class="drawing" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
    return "\n".join(
        [f'{head} aria-label="Rooms of the code, each above those that it imports">', STYLE, *parts, "</svg>"]
    )


if __name__ == "__main__":
    print(draw())
