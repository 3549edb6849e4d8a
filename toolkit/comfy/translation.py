"""From the graph of a workflow to calls, node by node: what each becomes is in `dictionary`. No torch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .expressions import Call, Expression, Gap, Parameter, Token, tokens
from .graphs import Graph, Node
from .subgraphs import Broken, Link
from .widgets import Refused, kind_of, named

# what a node that is not translated is taken to hand on, from which of its inputs, by the output's slot
THROUGH = {
    "MODEL": (("model", "model1", "base_model"),),
    "VAE": (("vae",),),
    "CLIP": (("clip", "clip1"),),
    "CONDITIONING": (
        ("positive", "conditioning", "conditioning_1", "conditioning1", "conditioning_to", "cond", "cond1"),
        ("negative",),
    ),
}
BASES = {"LATENT": "latent", "IMAGE": "image", "MASK": "mask", "CONDITIONING": "condition",
         "SIGMAS": "sigmas", "SAMPLER": "sampler", "NOISE": "noise", "GUIDER": "guider",
         "MODEL": "model"}  # fmt: skip
# settings that are parameters of the whole, and the name that they have there
SETTINGS = {"seed": "seed", "noise_seed": "seed", "steps": "steps", "cfg": "cfg", "denoise": "denoise",
            "sampler_name": "sampler_name", "scheduler": "scheduler", "width": "width", "height": "height",
            "batch_size": "batch_size"}  # fmt: skip
UNUSED = "nothing that is translated uses it"


class Value(NamedTuple):
    """An output of a node: its type, and what stands for it in a call."""

    kind: str
    what: Any


@dataclass(frozen=True)
class Entry:
    """A node that is not translated, or not in full, or set aside; and why.

    Attributes
    ----------
    node, type, title : str
        Its id in the file, the name under which ComfyUI registers it, and the title that its user gave it.
    why : str
    holds : dict
        Its values, by name as far as names are known.
    calls : tuple of str
        The ids of nodes whose calls depend on it.
    """

    node: str
    type: str
    title: str
    why: str
    holds: dict[str, Any] = field(default_factory=dict)
    calls: tuple[str, ...] = ()

    def __str__(self) -> str:
        title = f" {self.title!r}" if self.title else ""
        held = ", ".join(f"{name}={_short(value)}" for name, value in self.holds.items())
        said = f"node {self.node}, {self.type}{title}: {self.why}"
        said += f"; it holds {held}" if held else ""
        return said + (f"; needed by {', '.join(self.calls)}" if self.calls else "")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


class Skip(Exception):
    """A node that is not translated; the message says why."""


class Translator:
    """Walks a graph from its sources down.

    Parameters
    ----------
    graph : Graph
    dictionary : dict
        Type of node -> function (translator, node) -> list of `Value`, one an output.
    """

    def __init__(self, graph: Graph, dictionary: dict[str, Callable[["Translator", Node], list[Value]]]):
        self.graph, self.dictionary = graph, dictionary
        self.calls: list[Call] = []
        self.made: dict[Link, Value] = {}
        # what nodes that are not translated hand on, by node, type and slot
        self.passed: dict[tuple[str, str, int], Value] = {}
        self.entries: dict[str, tuple[str, dict[str, Any]]] = {}  # of nodes that are not translated
        self.remarks: list[tuple[Node, str]] = []
        self.models: dict[str, Token] = {}  # by what they are loaded from
        self.first = Token("model", "")  # where nothing says which; the first loader makes it
        self.guidance: dict[str, Parameter] = {}  # what a distilled network is told
        self._gaps: dict[tuple[Any, str], Gap] = {}
        order, circle = graph.order()
        for key in order:
            self._node(graph.nodes[key], key in circle)
        if self.first.node and not self.models:
            node = graph.nodes[self.first.node]
            self.remark(node, "no checkpoint is named in this file, and None is the embedded pipeline")
            self._load(None, node, self.first)
        for call in self.calls:
            if call.function == "tk.load":
                call.parameters.update(self.guidance)

    def _node(self, node: Node, in_circle: bool) -> None:
        """One node: its call or calls, or the entry that says why there are none."""
        held: dict[str, Any] = {}
        try:
            held = named(node.kind, node.values, node.widgets)
            node.inputs = held | node.inputs
            held = {k: v for k, v in node.inputs.items() if not isinstance(v, (Link, Broken))}
            if in_circle:
                raise Skip("it is part of a circle of links, which ComfyUI refuses")
            known = kind_of(node.kind), node.kind.split(" [")[0]  # components have a hash behind their name
            made = next((self.dictionary[one] for one in known if one in self.dictionary), None)
            if made is None:
                raise Skip("there is no translation of this node")
            for slot, value in enumerate(made(self, node)):
                self.made[Link(node.id, slot)] = value
        except (Skip, Refused) as error:
            if isinstance(error, Refused) and isinstance(node.values, list):
                held = {f"value {k + 1}": value for k, value in enumerate(node.values)}
            self.entries[node.id] = (str(error), held)
            self._hand_on(node)

    # --- inputs

    def want(self, node: Node, name: str, kind: str) -> Any:
        """What stands for an input of a type; None where nothing leads there."""
        given = node.inputs.get(name)
        if given is None:
            return None
        if isinstance(given, Broken):
            return self._gap((node.id, name), kind, node.id, given.why, name)
        if isinstance(given, Link):
            return self._at(given, kind)
        if kind == "VALUE":
            return given
        why = f"{_short(given)} stands where a {kind} is linked"
        return self._gap((node.id, name), kind, node.id, why, name)

    def _at(self, link: Link, kind: str) -> Any:
        """What stands for the output of a node, where a type is wanted."""
        value, origin = self.made.get(link), self.graph.nodes[link.node]
        if value is not None and value.kind == kind:
            return value.what
        who = f"node {origin.id}, {origin.kind}"
        if value is not None:
            why = f"{who}, gives a {value.kind} where a {kind} is wanted"
        elif link.node not in self.entries:
            why = f"{who}, has no such output"
        else:
            through = self._through(link, kind)
            if through is not None:
                return through.what
            why = f"{who}, is not translated"
        return self._gap(link, kind, f"{origin.id}_{link.slot}" if link.slot else origin.id, why)

    def _hand_on(self, node: Node) -> None:
        """Notes what a node that is not translated is taken to hand on; its entry says so."""
        for kind, groups in THROUGH.items():
            rest = [name for group in groups for name in group]
            for slot, group in enumerate(groups):
                links = [node.inputs[name] for name in (*group, *rest) if name in node.inputs]
                values = (self._passing(link, kind) for link in links if isinstance(link, Link))
                found = next((value for value in values if value is not None), None)
                if found is not None:
                    self.passed[node.id, kind, slot] = found

    def _passing(self, link: Link, kind: str) -> Value | None:
        """A value of a type at an output, of the node or handed on by it."""
        value = self.made.get(link)
        if value is not None and value.kind == kind:
            return value
        slot = min(link.slot, len(THROUGH[kind]) - 1) if kind in THROUGH else 0
        return self.passed.get((link.node, kind, slot))

    def _through(self, link: Link, kind: str) -> Value | None:
        """What stands for the output of a node that is not translated."""
        found = self._passing(link, kind)
        if found is None and kind in ("MODEL", "VAE"):
            return Value(kind, self.model_of(None, self.graph.nodes[link.node]))
        return Value(kind, None) if found is None and kind == "CLIP" else found

    def _gap(self, key: Any, kind: str, node: str, why: str, name: str = "") -> Gap:
        base = name if name.isascii() and name.isidentifier() else BASES.get(kind, "value")
        return self._gaps.setdefault((key, kind), Gap(base, node, kind, why))

    def model_of(self, source: str | None, node: Node) -> Token:
        """The variable of a model that is loaded from `source`; None: the first one, or the only."""
        if source is None:
            self.first.node = self.first.node or node.id
            return self.first
        if source not in self.models:
            token = Token("model", node.id) if self.models else self.first
            token.node = node.id
            self.models[source] = token
            self._load(source, node, token)
        return self.models[source]

    def _load(self, source: str | None, node: Node, token: Token) -> None:
        given = {"source": Parameter("model_id", node.id, source)}
        self.calls.append(Call(node.id, node.kind, node.title, "tk.load", given, (token,)))

    def model(self, node: Node, name: str = "model") -> Any:
        """The model of a node."""
        found = self.want(node, name, "MODEL")
        return self.model_of(None, node) if found is None else found

    def prompt(self, node: Node, name: str) -> Any:
        """A condition, which is called a prompt or a negative prompt by where it goes first."""
        found = self.want(node, name, "CONDITIONING")
        return role(found, name)

    def setting(self, node: Node, name: str, default: Any = None) -> Any:
        """A value of a node: a parameter of the whole where it is one of `SETTINGS`."""
        found = self.want(node, name, "VALUE")
        if found is None:
            return default
        if isinstance(found, Parameter) and found.base == "value":
            found.base = SETTINGS.get(name, name)
        if isinstance(found, (Token, Expression)):
            return found
        return Parameter(SETTINGS[name], node.id, found) if name in SETTINGS else found

    def settings(self, node: Node, *names: str) -> dict[str, Any]:
        """Those of some values that the node has; the others keep the defaults of the call."""
        found = {name: self.setting(node, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def pipe(self, node: Node, name: str) -> dict[str, Any]:
        """The bundle of model, prompts and latent that some packs lay one wire for."""
        for kind in ("BASIC_PIPE", "PIPE_LINE"):
            link = node.inputs.get(name)
            if isinstance(link, Link) and link in self.made and self.made[link].kind == kind:
                return self.made[link].what
        if node.inputs.get(name) is None:
            return {}
        return {"positive": self.want(node, name, "CONDITIONING")}

    # --- outputs

    def call(self, node: Node, function: str, parameters: dict[str, Any], *bases: str) -> Any:
        """A call of a node; the variables of its results."""
        targets = tuple(Token(base, node.id) for base in bases)
        self.calls.append(Call(node.id, node.kind, node.title, function, parameters, targets))
        return targets[0] if len(targets) == 1 else targets

    def remark(self, node: Node, why: str) -> None:
        """Something to be known of a node that is translated."""
        self.remarks.append((node, why))

    # --- the end

    def pruned(self, kept: Iterable[str]) -> list[str]:
        """Takes off calls whose results go nowhere, but those of functions that are `kept`; their nodes."""
        kept, used, left, gone = tuple(kept), set(), [], []
        for call in reversed(self.calls):
            if call.function.startswith(kept) or used & set(map(id, call.targets)):
                used |= {id(token) for token in tokens(call)}
                left.append(call)
            else:
                gone.append(call.node)
        self.calls = [_without(call, used, kept) for call in reversed(left)]
        return gone


def _without(call: Call, used: set[int], kept: tuple[str, ...]) -> Call:
    if len(call.targets) < 2:
        return call
    targets = tuple(t if id(t) in used or call.function.startswith(kept) else None for t in call.targets)
    path = call.parameters.get("image")
    if targets[0] is None and isinstance(path, Parameter):  # of the picture the mask alone is used
        path.base = "mask_path"
    return Call(call.node, call.type, call.title, call.function, call.parameters, targets)


def role(found: Any, name: str) -> Any:
    """A prompt that goes to a negative first is a negative one."""
    if isinstance(found, Parameter) and found.base in ("text", "value"):
        found.base = "negative_prompt" if "negative" in name else "prompt"
    return found
