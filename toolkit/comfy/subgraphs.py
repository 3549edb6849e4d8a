"""Workflows in the format of ComfyUI's interface, with their subgraphs and groups opened. No torch here.

The nodes of a subgraph get the ids that ComfyUI's server gives them: "12:5" is node 5 in the subgraph that
node 12 stands for; those of a group (the older kind, `extra.groupNodes`) are numbered by their place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

INPUTS, OUTPUTS = -10, -20  # the two ends of a subgraph, as its links call them
GROUPS = ("workflow/", "workflow>")
DEEPEST = 32
OPENED = "it was opened: its nodes are taken one by one"
NEVER, BYPASS = 2, 4  # modes of a node


class Link(NamedTuple):
    """The output `slot` of a node."""

    node: str
    slot: int


class Plain(NamedTuple):
    """A value at the end of the wiring."""

    value: Any


class Broken(NamedTuple):
    """An input that leads nowhere, and why."""

    why: str


@dataclass
class Raw:
    """A node as it was saved, with an id of its own in the whole file."""

    id: str
    kind: str
    title: str
    mode: int
    scope: str  # of its links
    inputs: list[tuple[str, str, Any]]  # name, type, link
    outputs: tuple[str, ...]
    widgets: tuple[str, ...]
    values: Any


@dataclass
class Flat:
    """All nodes of a file side by side."""

    nodes: list[Raw] = field(default_factory=list)
    links: dict[tuple[str, Any], Link] = field(default_factory=dict)  # by scope and id: where it begins
    forward: dict[Link, Any] = field(default_factory=dict)  # what stands behind an output; None for nothing
    promoted: dict[str, dict[str, Any]] = field(default_factory=dict)  # values given on the outside
    remarks: list[tuple[str, str, str, str]] = field(default_factory=list)
    entered: list[tuple[str, str, str, str]] = field(default_factory=list)  # what stood for others


def opened(workflow: Mapping[str, Any]) -> Flat:
    """The nodes of a workflow, those in subgraphs and groups among them."""
    definitions = workflow.get("definitions")
    listed = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    subgraphs = {str(one.get("id")): one for one in _list(listed) if isinstance(one, Mapping)}
    extra = workflow.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, Mapping) else None
    flat = Flat()
    _open(flat, workflow, "", subgraphs, groups if isinstance(groups, Mapping) else {}, 0)
    return flat


def _open(flat: Flat, level: Mapping[str, Any], prefix: str, subgraphs: Mapping, groups: Mapping,
          depth: int) -> None:  # fmt: skip
    """One level of a workflow, and those below it."""
    for link in _list(level.get("links")):
        key, origin, slot = _link(link)
        if key is not None:
            flat.links[prefix, key] = Link(f"{prefix}{origin}", slot)
    for given in _list(level.get("nodes")):
        if not isinstance(given, Mapping):
            continue
        raw = _raw(given, prefix)
        inner = subgraphs.get(raw.kind)
        group = next((groups.get(raw.kind[len(p) :]) for p in GROUPS if raw.kind.startswith(p)), None)
        if (inner is None and not isinstance(group, Mapping)) or raw.mode in (NEVER, BYPASS):
            flat.nodes.append(raw)
        elif depth >= DEEPEST:
            flat.nodes.append(raw)
            flat.remarks.append((raw.id, raw.kind, raw.title, "a subgraph within itself"))
        elif inner is not None:
            flat.entered.append((raw.id, raw.kind, raw.title or _text(inner.get("name")), OPENED))
            _open(flat, inner, f"{raw.id}:", subgraphs, groups, depth + 1)
            _enter(flat, raw, given, inner)
        else:
            flat.entered.append((raw.id, raw.kind, raw.title, OPENED))
            _ungroup(flat, raw, group)


def _link(link: Any) -> tuple[Any, Any, int]:
    """Id, node and slot of origin of a link, a list or, in subgraphs, a dict; None for what is none."""
    if isinstance(link, Mapping):
        found = (link.get("id"), link.get("origin_id"), link.get("origin_slot"))
    else:
        found = tuple(link[:3]) if isinstance(link, list) and len(link) >= 5 else (None, None, None)
    key, origin, slot = found
    fine = isinstance(key, (str, int)) and isinstance(origin, (str, int)) and isinstance(slot, int)
    return (key, origin, slot) if fine else (None, None, 0)


def _raw(given: Mapping[str, Any], prefix: str) -> Raw:
    inputs, widgets = [], []
    for one in _list(given.get("inputs")):
        if isinstance(one, Mapping):
            link = one.get("link") if isinstance(one.get("link"), (str, int)) else None
            inputs.append((_text(one.get("name")), _text(one.get("type")), link))
            widget = one.get("widget")
            if isinstance(widget, Mapping) and isinstance(widget.get("name"), str):
                widgets.append(widget["name"])
    outputs = tuple(_text(o.get("type")) for o in _list(given.get("outputs")) if isinstance(o, Mapping))
    mode = given.get("mode") if isinstance(given.get("mode"), int) else 0
    title = _text(given.get("title"))
    return Raw(f"{prefix}{given.get('id')}", _text(given.get("type")), title, mode, prefix, inputs, outputs,
               tuple(widgets), given.get("widgets_values"))  # fmt: skip


def _enter(flat: Flat, outer: Raw, given: Mapping[str, Any], inner: Mapping[str, Any]) -> None:
    """The border of a subgraph: its inputs lead on to what the node has outside, its outputs to inside."""
    scope, values = f"{outer.id}:", _promoted(flat, outer, given)
    links = {name: link for name, _, link in outer.inputs if link is not None}
    for slot, one in enumerate(_list(inner.get("inputs"))):
        name = _text(one.get("name")) if isinstance(one, Mapping) else ""
        behind = Plain(values[name]) if name in values else None
        behind = _begin(flat, outer.scope, links[name]) if name in links else behind
        flat.forward[Link(f"{scope}{INPUTS}", slot)] = behind
    for slot in range(len(_list(inner.get("outputs")))):
        flat.forward[Link(outer.id, slot)] = None
    for link in _list(inner.get("links")):
        key, slot = _link(link)[0], link.get("target_slot") if isinstance(link, Mapping) else None
        if key is not None and isinstance(slot, int) and link.get("target_id") == OUTPUTS:
            flat.forward[Link(outer.id, slot)] = flat.links.get((scope, key))


def _begin(flat: Flat, scope: str, link: Any) -> Any:
    """Where a link begins."""
    return flat.links.get((scope, link), Broken(f"its link {link!r:.20} is not in the file"))


def _promoted(flat: Flat, outer: Raw, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values that a subgraph's node has for its own inputs, by name; those of inner widgets are noted.

    `proxyWidgets` lists them, [inner id, name] each, "-1" for an input of the subgraph; but files differ in
    whether the values of the others are saved along.
    """
    values = outer.values if isinstance(outer.values, list) else []
    properties = given.get("properties")
    listed = _list(properties.get("proxyWidgets")) if isinstance(properties, Mapping) else []
    pairs = [(str(p[0]), _text(p[1])) for p in listed if isinstance(p, list) and len(p) >= 2]
    own = [name for node, name in pairs if node == "-1"] or list(outer.widgets)
    if pairs and len(values) == len(pairs):
        found = {}
        for (node, name), value in zip(pairs, values, strict=True):
            if node == "-1":
                found[name] = value
            elif name != "control_after_generate":
                flat.promoted.setdefault(f"{outer.id}:{node}", {})[name] = value
        return found
    if len(values) == len(own):
        return dict(zip(own, values, strict=True))
    if values:
        why = f"its {len(values)} values fit none of its inputs: those inside are taken"
        flat.remarks.append((outer.id, outer.kind, outer.title, why))
    return {}


def _ungroup(flat: Flat, outer: Raw, group: Mapping[str, Any]) -> None:
    """The nodes of a group, the older kind of subgraph: inputs and outputs that no link within it takes."""
    scope = f"{outer.id}:"
    members = [_raw(one, scope) for one in _list(group.get("nodes")) if isinstance(one, Mapping)]
    for place, member in enumerate(members):
        member.id = f"{scope}{place}"
    taken, used, external = {}, set(), set()
    for link in _list(group.get("links")):
        if isinstance(link, list) and len(link) >= 4 and all(isinstance(k, int) for k in link[:4]):
            taken[link[2], link[3]] = Link(f"{scope}{link[0]}", link[1])
            used.add((link[0], link[1]))
    for one in _list(group.get("external")):
        external.add(tuple(one[:2]) if isinstance(one, list) else None)
    outside, left = list(outer.inputs), 0
    for place, member in enumerate(members):
        for slot, (name, kind, _) in enumerate(member.inputs):
            key, link = f"{place}/{slot}", None
            if (place, slot) in taken:
                flat.links[scope, key] = taken[place, slot]
            elif outside and outside[0][1] == kind:  # inputs of the group, in the order of its members'
                link = outside.pop(0)[2]
                if link is not None:
                    flat.links[scope, key] = _begin(flat, outer.scope, link)
            member.inputs[slot] = (name, kind, key if (scope, key) in flat.links else None)
        for slot in range(len(member.outputs)):
            if (place, slot) not in used or (place, slot) in external:
                flat.forward[Link(outer.id, left)] = Link(member.id, slot)
                left += 1
    _shared(flat, outer, members)
    flat.nodes += members


def _shared(flat: Flat, outer: Raw, members: list[Raw]) -> None:
    """The values of a group's node are those of its members, one after the other."""
    own = [member.values for member in members if isinstance(member.values, list)]
    values = outer.values if isinstance(outer.values, list) else []
    if len(values) == sum(map(len, own)):
        start = 0
        for member in members:
            if isinstance(member.values, list):
                member.values = values[start : start + len(member.values)]
                start += len(member.values)
    elif values:
        why = f"its {len(values)} values are not those of its nodes: the ones of its definition are taken"
        flat.remarks.append((outer.id, outer.kind, outer.title, why))


def _list(given: Any) -> list:
    return given if isinstance(given, list) else []


def _text(given: Any) -> str:
    return given if isinstance(given, str) else ""
