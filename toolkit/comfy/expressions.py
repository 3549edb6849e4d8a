"""What a workflow becomes: calls of this package as data, to be run, or written as Python. No torch here."""

import importlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

WIDTH = 100
# parameters of a workflow, as they are listed
ORDER = ("model_id", "image_path", "mask_path", "latent_path", "prompt", "negative_prompt", "seed", "steps",
         "cfg", "guidance", "sampler_name", "scheduler", "denoise", "width", "height",
         "batch_size")  # fmt: skip
# parameters that are written without their name, where they come first
FIRST = ("model", "image", "mask", "samples", "samples1", "latents", "sigmas", "run", "source", "path")


@dataclass(eq=False)
class Token:
    """What will be a variable: `base` is its name, with the node's id behind it where one is not enough."""

    base: str
    node: str


@dataclass(eq=False)
class Parameter(Token):
    """A variable that the user sets, with the value that the file has."""

    value: Any = None


@dataclass(eq=False)
class Gap(Token):
    """A variable that nothing here makes: the output of a node that is not translated, or a broken link."""

    kind: str = ""
    why: str = ""


@dataclass(frozen=True)
class Variable:
    """A variable by its name."""

    name: str

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Expression:
    """A call within a call."""

    function: str
    parameters: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"{self.function}({_arguments(self.parameters)})"


@dataclass(frozen=True)
class Call:
    """One call of this package, for one node of a workflow.

    Attributes
    ----------
    node, type, title : str
        Its id in the file, the name under which ComfyUI registers it, and the title that its user gave it.
    function : str
        As it is typed, such as "tk.comfy.unsampler".
    parameters : dict
        By name; a `Variable` stands for the result of another call, or for a parameter of the workflow.
    targets : tuple of str
        The variables that the result goes to; "_" for what nobody uses.
    needs : tuple of str
        Variables that no call makes, without which this one cannot run.
    """

    node: str
    type: str
    title: str
    function: str
    parameters: Mapping[str, Any]
    targets: tuple[Any, ...]
    needs: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        targets = ", ".join(map(str, self.targets))
        return f"{targets} = {self.function}({_arguments(self.parameters)})"


def _arguments(parameters: Mapping[str, Any]) -> str:
    return ", ".join(
        written(value) if k == 0 and name in FIRST else f"{name}={written(value)}"
        for k, (name, value) in enumerate(parameters.items())
    )


# --- trees ----------------------------------------------------------------------------------------


def tokens(tree: Any) -> Iterator[Token]:
    """All tokens in a value, in order."""
    if isinstance(tree, Token):
        yield tree
    elif isinstance(tree, (Expression, Call)):
        yield from tokens(tree.parameters)
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tokens(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tokens(value)


def settled(tree: Any, names: Mapping[int, str]) -> Any:
    """A value with its tokens replaced by variables; `names` is by the identity of a token."""
    if isinstance(tree, Token):
        return Variable(names[id(tree)])
    if isinstance(tree, Call):
        targets = tuple(names.get(id(t), "_") for t in tree.targets)
        return replace(tree, parameters=settled(tree.parameters, names), targets=targets)
    if isinstance(tree, Expression):
        return Expression(tree.function, settled(tree.parameters, names))
    if isinstance(tree, Mapping):
        return {name: settled(value, names) for name, value in tree.items()}
    return [settled(value, names) for value in tree] if isinstance(tree, (list, tuple)) else tree


def variables(tree: Any) -> Iterator[str]:
    """The names of all variables in a settled value."""
    if isinstance(tree, Variable):
        yield tree.name
    elif isinstance(tree, (Expression, Call)):
        yield from variables(tree.parameters)
    elif isinstance(tree, (list, tuple, Mapping)):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from variables(value)


def naming(calls: list[Call]) -> tuple[dict[int, str], dict[str, Any], dict[str, Gap]]:
    """The name of every token, the parameters and the gaps by name.

    A parameter that all calls agree on is one; where they do not, each has the id of its node in its name.
    """
    found: dict[int, Token] = {}
    for call in calls:
        for token in (*tokens(call), *call.targets):
            if isinstance(token, Token):
                found.setdefault(id(token), token)
    names, parameters, gaps, taken = {}, {}, {}, {"tk"}
    bases: dict[str, list[Token]] = {}
    for token in found.values():
        bases.setdefault(token.base, []).append(token)
    for base, group in bases.items():
        values = [t.value for t in group if isinstance(t, Parameter)]
        alike = len(values) == len(group) and all(_same(v, values[0]) for v in values)
        for token in group:
            alone = (len(group) == 1 or alike) and not isinstance(token, Gap)
            name = base if alone else f"{base}_{re.sub('[^0-9A-Za-z]', '_', token.node) or 'node'}"
            while name in taken and not (alone and alike):
                name += "_"
            taken.add(name)
            names[id(token)] = name
            if isinstance(token, Parameter):
                parameters.setdefault(name, token.value)
            elif isinstance(token, Gap):
                gaps[name] = token
    place = {base: k for k, base in enumerate(ORDER)}
    by_base = {names[i]: token.base for i, token in found.items()}
    order = sorted(parameters, key=lambda name: place.get(by_base[name], len(ORDER)))
    return names, {name: parameters[name] for name in order}, gaps


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


# --- running --------------------------------------------------------------------------------------


def evaluated(tree: Any, known: Mapping[str, Any]) -> Any:
    """The value of a settled tree, with variables as `known`."""
    if isinstance(tree, Variable):
        return known[tree.name]
    if isinstance(tree, (Expression, Call)):
        return function(tree.function)(**{k: evaluated(v, known) for k, v in tree.parameters.items()})
    return [evaluated(value, known) for value in tree] if isinstance(tree, list) else tree


def function(name: str) -> Any:
    """What "tk.comfy.unsampler" names."""
    found = importlib.import_module(__name__.split(".")[0])
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


# --- writing --------------------------------------------------------------------------------------


def written(value: Any) -> str:
    """A value as Python, on one line."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(written, value)) + "]"
    return f"{value.function}({_arguments(value.parameters)})" if isinstance(value, Call) else repr(value)


def _quoted(text: str) -> str:
    """A text in double quotes where they need no escape; what is not printable is escaped, line ends too."""
    plain = repr(text)
    return plain if plain.startswith('"') or '"' in text else f'"{plain[1:-1]}"'


def statement(target: str, value: Any, indent: int = 0) -> list[str]:
    """`target = value` in lines of at most WIDTH columns, as far as names and numbers allow."""
    head = " " * indent + f"{target} = "
    if isinstance(value, str) and len(head) + len(written(value)) > WIDTH:
        pieces = [" " * (indent + 4) + _quoted(piece) for piece in _pieces(value, WIDTH - indent - 8)]
        return [head + "(", *pieces, " " * indent + ")"]
    return _block(value, indent, f"{target} = ")


def _block(value: Any, indent: int, head: str = "") -> list[str]:
    """`head` and a value, over several lines where they are needed: one argument, or one entry, each."""
    pad = " " * indent
    line = pad + head + written(value)
    if len(line) < WIDTH or not isinstance(value, (Call, Expression, list)):
        return [line]
    if isinstance(value, list):
        items, ends = [("", one) for one in value], ("[", "]")
    else:
        named = enumerate(value.parameters.items())
        items = [("" if k == 0 and name in FIRST else f"{name}=", one) for k, (name, one) in named]
        ends = (f"{value.function}(", ")")
    lines = [pad + head + ends[0]]
    for name, one in items:
        block = _block(one, indent + 4, name)
        block[-1] += ","
        lines += block
    return [*lines, pad + ends[1]]


def _pieces(text: str, width: int) -> list[str]:
    """A long text in parts that give it back when joined; parts end with a space, where there is one."""
    parts, now = [], ""
    for word in re.findall(r"\S*\s*", text):
        while len(word) > width:
            parts += [now] if now else []
            parts.append(word[:width])
            now, word = "", word[width:]
        if len(_quoted(now + word)) > width + 2 and now:
            parts.append(now)
            now = ""
        now += word
    return [*parts, now] if now or not parts else parts
