"""The graph of a workflow in one normal form, whichever of ComfyUI's two formats it came in. No torch here.

In the format of its interface nodes lie in lists, values have no names, and some nodes are wiring alone:
reroutes, primitives, set and get, subgraphs, groups, and nodes that are bypassed. In the format of its server
({id: {"class_type", "inputs"}}) all that is gone. Here, too: an input is a value or a `Link` to the node that
makes it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .subgraphs import BYPASS, NEVER, Broken, Link, Plain, opened

REROUTES = ("Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss", "JWReroute")
SETS, GETS = ("SetNode", "easy setNode"), ("GetNode", "easy getNode")
REMARKS = ("Note", "MarkdownNote", "Label (rgthree)", "Fast Groups Bypasser (rgthree)", "Bookmark (rgthree)",
           "Fast Groups Muter (rgthree)", "Fast Bypasser (rgthree)", "Fast Muter (rgthree)")  # fmt: skip


@dataclass
class Node:
    """A node that does something: its inputs by name, each a value, a `Link` or `Broken`."""

    id: str
    kind: str
    title: str
    inputs: dict[str, Any] = field(default_factory=dict)
    values: Any = None  # a list of widget values without names, as the interface saves them
    widgets: tuple[str, ...] = ()  # names of those inputs that stand for widgets, in their order
    types: tuple[str, ...] = ()  # of the outputs, where they are known


@dataclass
class Graph:
    """The nodes of a workflow by id; and those that are set aside, (id, type, title, why)."""

    nodes: dict[str, Node]
    aside: list[tuple[str, str, str, str]]
    remarks: list[tuple[str, str, str, str]] = field(default_factory=list)  # what could not be opened

    def links(self, node: str) -> Iterator[Link]:
        """Where the inputs of a node come from."""
        for value in self.nodes[node].inputs.values():
            if isinstance(value, Link) and value.node in self.nodes:
                yield value

    def order(self) -> tuple[list[str], list[str]]:
        """Ids from the sources down, where links leave it open as in the file; and those in circles."""
        done, state, circle = [], {}, set()
        for root in self.nodes:
            stack = [(root, iter([]))] if root not in state else []
            if stack:
                state[root], stack = 1, [(root, self.links(root))]
            while stack:
                node, waiting = stack[-1]
                link = next(waiting, None)
                if link is None:
                    state[node] = 2
                    done.append(node)
                    stack.pop()
                elif state.get(link.node) == 1:
                    trail = [one for one, _ in stack]
                    circle.update(trail[trail.index(link.node) :])
                elif link.node not in state:
                    state[link.node] = 1
                    stack.append((link.node, self.links(link.node)))
        return done, [node for node in done if node in circle]


def of_prompt(prompt: Mapping[str, Any], titles: Mapping[str, str]) -> Graph:
    """The graph of a workflow in the server's format; `titles` are those of the drawn one, if any."""
    nodes, aside = {}, []
    ids = {str(key) for key, entry in prompt.items() if _is_node(entry)}
    for key, entry in prompt.items():
        if not _is_node(entry):
            aside.append((str(key), "", "", "no node: it has no class_type"))
            continue
        meta = entry.get("_meta") if isinstance(entry.get("_meta"), Mapping) else {}
        title = text_of(meta.get("title")) or titles.get(str(key), "")
        given = entry.get("inputs") if isinstance(entry.get("inputs"), Mapping) else {}
        inputs = {str(name): _api_value(value, ids) for name, value in given.items()}
        kind = entry["class_type"]
        nodes[str(key)] = Node(str(key), kind, title if title != kind else "", inputs)
    return Graph(nodes, aside)


def _is_node(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("class_type"), str)


def _api_value(value: Any, ids: set[str]) -> Any:
    """A value of the server's format: a link is [id, slot]; a list that is none is wrapped, lately."""
    if isinstance(value, Mapping) and set(value) == {"__value__"}:
        return value["__value__"]
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int))
    if is_link and isinstance(value[1], int) and not isinstance(value[1], bool):
        if str(value[0]) in ids:
            return Link(str(value[0]), value[1])
        if isinstance(value[0], str):
            return Broken(f"it links to node {value[0][:20]}, which is not in the file")
    return value


def of_workflow(workflow: Mapping[str, Any]) -> Graph:
    """The graph of a workflow in the interface's format, with its wiring followed to the ends."""
    flat = opened(workflow)
    forward: dict[Link, Any] = dict(flat.forward)
    nodes, aside, named = {}, [], {}
    for raw in flat.nodes:
        inputs = _inputs(raw, flat.links)
        node = Node(raw.id, raw.kind, raw.title, inputs, raw.values, raw.widgets, raw.outputs)
        why = _wiring(raw, node, forward, named)
        why = why or ("its id is that of another node" if node.id in nodes else "")
        if why:
            aside.append((node.id, node.kind, node.title, why))
        else:
            nodes[node.id] = node
    for raw in flat.nodes:
        if raw.kind in GETS and Link(raw.id, 0) in forward:
            name = str(forward[Link(raw.id, 0)])
            forward[Link(raw.id, 0)] = named.get((raw.scope, name), named.get(("", name), _unset(name)))
    for node in nodes.values():
        node.inputs = {name: _followed(value, forward, nodes) for name, value in node.inputs.items()}
        node.inputs = {name: value for name, value in node.inputs.items() if value is not None}
        node.inputs |= flat.promoted.get(node.id, {})
    return Graph(nodes, [*flat.entered, *aside], flat.remarks)


def _unset(name: str) -> Broken:
    return Broken(f"no SetNode gives {name[:40]!r}")


def _inputs(raw: Any, links: Mapping[tuple[str, Any], Any]) -> dict[str, Any]:
    """The linked inputs of a node by name; the first of a name counts."""
    found: dict[str, Any] = {}
    for slot, (name, _, link) in enumerate(raw.inputs):
        if link is None:
            continue
        origin = links.get((raw.scope, link))
        value = Broken(f"its link {link!r:.20} is not in the file") if origin is None else origin
        found.setdefault(name or f"input {slot}", value)
    return found


def _wiring(raw: Any, node: Node, forward: dict[Link, Any], named: dict[tuple[str, Any], Any]) -> str:
    """Notes in `forward` what stands behind a node of the wiring; why it is set aside, "" for other nodes."""
    first = next(iter(node.inputs.values()), None)
    value = raw.values[0] if isinstance(raw.values, list) and raw.values else None
    if raw.mode == NEVER:
        for slot in range(max(1, len(raw.outputs))):
            forward[Link(raw.id, slot)] = Broken(f"node {raw.id}, {raw.kind}, is muted")
        return "muted"
    if raw.mode == BYPASS:
        for slot, kind in enumerate(raw.outputs):
            forward[Link(raw.id, slot)] = _passed(raw, node, slot, kind)
        return "bypassed: what comes in goes out"
    if raw.kind in REMARKS:
        return "a remark"
    if raw.kind in REROUTES:
        forward[Link(raw.id, 0)] = first if first is not None else Broken("a reroute without an input")
        return "wiring"
    if raw.kind == "PrimitiveNode":
        forward[Link(raw.id, 0)] = Plain(value)
        return "wiring: its value is that of the inputs which it leads to"
    if raw.kind in SETS:
        named[raw.scope, str(value)] = forward[Link(raw.id, 0)] = first
        named.setdefault(("", str(value)), first)
        return "wiring"
    if raw.kind in GETS:
        forward[Link(raw.id, 0)] = value
        return "wiring"
    return ""


def _passed(raw: Any, node: Node, slot: int, kind: str) -> Any:
    """What a bypassed node hands on at an output: the input at its place if of its type, else the first."""
    fits = [
        (place, name) for place, (name, of, _) in enumerate(raw.inputs) if of == kind or "*" in (of, kind)
    ]
    for _, name in sorted(fits, key=lambda fit: fit[0] != slot):
        if name in node.inputs:
            return node.inputs[name]
    return Broken(f"node {raw.id}, {raw.kind}, is bypassed, and no input of it is a {kind}")


def _followed(value: Any, forward: Mapping[Link, Any], nodes: Mapping[str, Node]) -> Any:
    """A link through all wiring: to a node, a value, nothing (None), or `Broken`."""
    seen = set()
    while isinstance(value, Link):
        if value in seen:
            return Broken("its links go round in a circle")
        seen.add(value)
        if value in forward:
            value = forward[value]
        elif value.node in nodes:
            return value
        else:
            return Broken(f"it links to node {value.node}, which is not in the file")
    return value.value if isinstance(value, Plain) else value


def text_of(given: Any) -> str:
    """A title, if it is one."""
    return given if isinstance(given, str) else ""
