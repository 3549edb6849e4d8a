"""The way over from ComfyUI: a workflow file read as calls of this package, as code, and as parameters."""

import textwrap
from collections.abc import Iterator, Mapping
from html import escape
from os import PathLike
from typing import Any

from ..errors import bad, unknown
from . import bundles as bundles  # fills the table
from . import samplers as samplers
from .batches import SAMPLERS
from .dictionary import TABLE
from .expressions import WIDTH, Call, Gap, evaluated, naming, settled, statement, variables
from .graphs import Graph, of_prompt, of_workflow
from .regions import TABLES
from .sources import EXPORT, documents
from .translation import UNUSED, Entry, Translator
from .unsampling import SCHEDULERS

SMALL, LOAD = "tk.comfy.nodes.", "tk.load"
# calls whose results count even where no other call uses them
KEPT = (LOAD, "tk.comfy.ksampler", "tk.comfy.sampler", "tk.comfy.unsampler", "tk.comfy.easy",
        "tk.comfy.batch", "tk.comfy.regional", "tk.regional", SMALL + "vae_decode")  # fmt: skip
SHOWN = "it shows or saves what is made, and changes nothing"
WIRED = "it has no call of its own: what it says is in the calls that it leads to"


class Workflow:
    """A workflow of ComfyUI as calls of this package; made by `read_workflow`.

    Attributes
    ----------
    name : str
        Of the file.
    calls : tuple of Call
        In an order in which they can be run: `node`, `type`, `title`, `function`, `parameters`, `targets`,
        and `needs`, the variables of `gaps` without which a call cannot run.
    untranslated : tuple of Entry
        What has no translation: `node`, `type`, `title`, `why`, `holds` (its values), `calls` (the nodes
        whose calls depend on it). LoRAs, ControlNets and such are left out of the model, and said here.
    remarks : tuple of Entry
        What is translated, and not in full.
    aside : tuple of Entry
        Nodes that change nothing in what is sampled: wiring, notes, previews, muted nodes.
    gaps : dict
        Variables that no call makes, and why: to be given to `run`, or filled in by hand.
    """

    def __init__(self, name: str, calls: tuple[Call, ...], parameters: dict[str, Any], gaps: dict[str, str],
                 untranslated: tuple[Entry, ...], remarks: tuple[Entry, ...],
                 aside: tuple[Entry, ...]):  # fmt: skip
        self.name, self.calls, self.gaps = name, calls, gaps
        self.untranslated, self.remarks, self.aside = untranslated, remarks, aside
        self._parameters = parameters

    def parameters(self) -> dict[str, Any]:
        """What a user may set, by name, as plain JSON: for ``papermill -y``, and the top of `to_code`.

        The names: ``model_id``, ``image_path``, ``mask_path``, ``latent_path``, ``prompt``,
        ``negative_prompt``, ``seed``, ``steps``, ``cfg``, ``guidance``, ``sampler_name``, ``scheduler``,
        ``denoise``, ``width``, ``height``, ``batch_size``. One where all nodes have the same value; else one
        for each node, with its id behind, as ``prompt_12``.
        """
        return dict(self._parameters)

    def to_code(self, load: bool = True, parameters: bool = True) -> str:
        """The Python cell: parameters at the top, then the calls.

        What needs a variable of `gaps` stands under an ``if`` that asks for it, so the cell runs as it is.

        Parameters
        ----------
        load : bool
            False leaves out the lines that load a model: it is there, as `model`.
        parameters : bool
            False leaves out the parameters, which are then in a cell of their own.
        """
        lines = [f"# {_comment(self.name)}, a workflow of ComfyUI", "import toolkit as tk", ""]
        if parameters and self._parameters:
            for name, value in self._parameters.items():
                lines += statement(name, value)
            lines.append("")
        lines += _listed("Not translated:", self.untranslated) + _listed("Translated, but:", self.remarks)
        if self.gaps:
            lines.append("# To be filled in by hand; until then the calls below that need it are left out.")
            lines += [f"{name} = None  # {_comment(why)[:WIDTH]}" for name, why in self.gaps.items()] + [""]
        open_for: tuple[str, ...] = ()
        for call in self.calls:
            if call.function == LOAD and not load:
                continue
            if call.needs != open_for:
                open_for = call.needs
                lines += [f"if {_there(open_for)}:"] if open_for else []
            indent = 4 if open_for else 0
            if not call.function.startswith((SMALL, LOAD)):
                title = f", {call.title!r}" if call.title else ""
                lines.append(" " * indent + _comment(f"# Node {call.node}, {call.type}{title}"))
            lines += statement(", ".join(call.targets), call, indent)
        return "\n".join(lines) + "\n"

    def run(self, model: Any = None, **parameters: Any) -> dict[str, Any]:
        """Makes the calls, in order; what `to_code` writes, with other parameters where they are given.

        Parameters
        ----------
        model : Model, optional
            In place of what the file names, which else is loaded.
        **parameters
            Of `parameters` or `gaps`. An ``image_path`` may as well be a picture.

        Returns
        -------
        dict
            The result of every call by its variable: Datasets of samplers, pictures as arrays. Calls whose
            `gaps` are not given are left out.

        Raises
        ------
        ValueError, TypeError
            For a parameter that is none of these, and as the calls do.
        """
        names = [*self._parameters, *self.gaps]
        for name in parameters:
            if name not in names:
                raise unknown("parameter", name, names, "workflow.run(model, {}=...)")
        known, made = {**self._parameters, **parameters}, {}
        for call in self.calls:
            if any(parameters.get(name) is None for name in call.needs):
                continue
            result = model if call.function == LOAD and model is not None else evaluated(call, known)
            results = (result,) if len(call.targets) == 1 else result
            made |= {name: value for name, value in zip(call.targets, results, strict=True) if name != "_"}
            known |= made
        return made

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)

    def __repr__(self) -> str:
        head = (
            f"Workflow({self.name!r}, {len(self.calls)} calls, {len(self.untranslated)} nodes not translated)"
        )
        lines = [f"  {'# ' if call.needs else ''}{call!r}" for call in self.calls]
        lines += [f"  not translated: {_comment(str(entry))}" for entry in self.untranslated]
        return "\n".join([head, *(line if len(line) <= 160 else line[:157] + "..." for line in lines)])

    def _repr_html_(self) -> str:
        rows = [("node", "type", "call")]
        rows += [(call.node, call.title or call.type, repr(call)) for call in self.calls]
        rows += [(e.node, e.title or e.type, f"not translated: {e.why}") for e in self.untranslated]
        rows += [(e.node, e.title or e.type, f"translated, but: {e.why}") for e in self.remarks]
        tags = ["th"] + ["td"] * len(rows)
        body = "".join(
            "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in row) + "</tr>"
            for tag, row in zip(tags, rows, strict=False)
        )
        return f"<table><caption>{escape(self.name)}</caption>{body}</table>"


def read_workflow(path: str | PathLike[str] | Mapping[str, Any]) -> Workflow:
    """A workflow of ComfyUI as calls of this package, with their parameters.

    Parameters
    ----------
    path : path, or dict
        A JSON file in the format of the interface or of the server (API), or of both in one; a PNG, WebP or
        JPEG that carries one; or the JSON, parsed. Of a file with both, values come from the server's, which
        has their names.

    Returns
    -------
    Workflow
        `calls`; `untranslated`, what has no translation, never dropped; `to_code()`, the Python cell;
        `parameters()`, those of papermill; `run(model)`.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError, TypeError
        For a file that is no workflow, was cut off or carries none, and for a workflow in which nothing is
        sampled or unsampled by a node that is known here.

    Examples
    --------
    >>> import toolkit as tk
    >>> prompt = {
    ...     "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "digits"}},
    ...     "2": {"class_type": "LoadImage", "inputs": {"image": "three.png"}},
    ...     "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
    ...     "4": {"class_type": "BNK_Unsampler", "inputs": {
    ...         "model": ["1", 0], "latent_image": ["3", 0], "steps": 4, "cfg": 1.0,
    ...         "sampler_name": "euler", "scheduler": "karras"}},
    ... }
    >>> workflow = tk.comfy.read_workflow(prompt)
    >>> workflow.parameters()["steps"]
    4
    >>> print(workflow.to_code(parameters=False))
    # dict, a workflow of ComfyUI
    import toolkit as tk
    <BLANKLINE>
    model = tk.load(model_id)
    image, _ = tk.comfy.nodes.load_image(image_path)
    latent = tk.comfy.nodes.vae_encode(model, pixels=image)
    # Node 4, BNK_Unsampler
    unsampled = tk.comfy.unsampler(
        model,
        steps=steps,
        cfg=cfg,
        sampler_name=sampler_name,
        scheduler=scheduler,
        latent_image=latent,
    )
    <BLANKLINE>
    >>> run = workflow.run(image_path=tk.assets.digits()[0][0])["unsampled"]
    >>> run.attrs["node"], run.sizes["step"]
    ('Unsampler', 5)
    """
    found, name = documents(path)
    drawn = of_workflow(found["workflow"]) if "workflow" in found else None
    graph = drawn
    if "prompt" in found:
        titles = {node.id: node.title for node in drawn.nodes.values()} if drawn else {}
        graph = of_prompt(found["prompt"], titles)
    translator = Translator(graph, TABLE)
    _check(translator, graph, name)
    idle = translator.pruned(KEPT)
    return _workflow(name, graph, translator, idle)


def _check(t: Translator, graph: Graph, name: str) -> None:
    """Refuses a workflow in which nothing is sampled."""
    if any(not call.function.startswith((SMALL, LOAD, "tk.comfy.load")) for call in t.calls):
        return
    refused = [f"{graph.nodes[k].kind} (node {k}): {why}" for k, (why, _) in t.entries.items()
               if graph.nodes[k].kind in TABLE and why and "ample" in graph.nodes[k].kind]  # fmt: skip
    if refused:
        raise bad("path", name, f"none of its samplers can be read: {'; '.join(refused)}", EXPORT)
    types = sorted({node.kind for node in graph.nodes.values()})
    shown = ", ".join(types[:20]) + (f" and {len(types) - 20} more" if len(types) > 20 else "")
    why = f"it holds no sampler that this package knows; its nodes are {shown or 'none'}"
    raise bad("path", name, why, "tk.unsample(model, model.encode(image))")


def _workflow(name: str, graph: Graph, t: Translator, idle: list[str]) -> Workflow:
    """Everything by its name, and every node accounted for."""
    _unknown_names(graph, t)
    first = [call for call in t.calls if call.function == LOAD]
    calls = first + [call for call in t.calls if call.function != LOAD]
    names, parameters, gaps = naming(calls)
    ready = _needing([settled(call, names) for call in calls], gaps)
    samples = {call.node for call in ready if not call.function.startswith((LOAD, SMALL))}
    reached = _reached(graph, samples)
    order = list(dict.fromkeys(call.node for call in ready if call.node in samples))

    def entry(key: str, why: str, holds: dict[str, Any] | None = None) -> Entry:
        node = graph.nodes[key]
        called = tuple(one for one in order if one in reached[key])
        return Entry(key, node.kind, node.title, why, holds or {}, called)

    failed = [entry(key, why, held) for key, (why, held) in t.entries.items() if why]
    failed += [Entry(*remark) for remark in graph.remarks]
    aside = [Entry(*given) for given in graph.aside]
    aside += [entry(key, SHOWN) for key, (why, _) in t.entries.items() if not why]
    known = {call.node for call in ready} | set(t.entries) | set(idle)
    aside += [entry(key, UNUSED) for key in idle]
    aside += [entry(key, WIRED if reached[key] else UNUSED) for key in graph.nodes if key not in known]
    remarks = [entry(key, why) for key, why in dict.fromkeys((node.id, why) for node, why in t.remarks)]
    why = {key: f"{gap.kind}: {gap.why}" for key, gap in gaps.items()}
    return Workflow(name, tuple(ready), parameters, why, tuple(failed), tuple(remarks), tuple(aside))


def _unknown_names(graph: Graph, t: Translator) -> None:
    """Remarks on samplers and schedulers of other packs, which the calls will refuse."""
    known = {"sampler_name": SAMPLERS, "sampler": SAMPLERS, "scheduler": (*SCHEDULERS, *TABLES)}
    for call in t.calls:
        for name, names in known.items():
            given = getattr(call.parameters.get(name), "value", call.parameters.get(name))
            if isinstance(given, str) and given not in names:
                t.remark(graph.nodes[call.node], f"{name} {given!r} is not here: give another one")


def _needing(calls: list[Call], gaps: Mapping[str, Gap]) -> list[Call]:
    """The calls, each with the gaps that it needs, by way of others too."""
    needs: dict[str, tuple[str, ...]] = {name: (name,) for name in gaps}
    done = []
    for call in calls:
        own = dict.fromkeys(gap for name in variables(call) for gap in needs.get(name, ()))
        done.append(Call(call.node, call.type, call.title, call.function, call.parameters, call.targets,
                         tuple(sorted(own))))  # fmt: skip
        needs |= {target: tuple(sorted(own)) for target in call.targets if own and target != "_"}
    return done


def _reached(graph: Graph, wanted: set[str]) -> dict[str, set[str]]:
    """For every node, the nodes of calls to which it leads."""
    reached: dict[str, set[str]] = {key: set() for key in graph.nodes}
    for key in reversed(graph.order()[0]):  # from the ends up
        found = reached[key] | ({key} & wanted)
        for link in graph.links(key):
            reached[link.node] |= found
    return reached


def _there(names: tuple[str, ...]) -> str:
    """The condition that some variables are filled in."""
    if len(names) < 3:
        return " and ".join(f"{name} is not None" for name in names)
    return f"all(given is not None for given in ({', '.join(names)}))"


def _listed(head: str, entries: tuple[Entry, ...]) -> list[str]:
    """Entries as comments."""
    lines = [f"# {head}"] if entries else []
    for one in entries:
        lines += textwrap.wrap(_comment(str(one)), WIDTH, initial_indent="# - ", subsequent_indent="#   ",
                               break_on_hyphens=False)  # fmt: skip
    return [*lines, ""] if entries else []


def _comment(text: str) -> str:
    """A text that cannot end a comment."""
    return "".join(c if c.isprintable() else " " for c in text)
