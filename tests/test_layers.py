"""The house, read from the source: layers without circles, sizes, names, and what `import toolkit` loads."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit as tk

ROOT = Path(tk.__file__).parent
MOST_LINES, LONGEST_FUNCTION = 400, 60

# who never imports whom, at whatever depth of the code; a name stands for the module and all below it
NEVER = [
    ("toolkit.solvers", "toolkit.paths"),
    ("toolkit.solvers", "toolkit.runs"),
    ("toolkit.denoisers", "toolkit.solvers"),
    ("toolkit.denoisers", "toolkit.pipelines"),
    ("toolkit.denoisers", "toolkit.spectral"),
    ("toolkit.spectral", "toolkit.pipelines"),
    ("toolkit.spectral", "toolkit.runs"),
    ("toolkit.diagnostics", "torch"),
    ("toolkit.diagnostics", "toolkit.views"),
    ("toolkit.views", "torch"),
    ("toolkit.views", "toolkit.runs"),
    ("toolkit.dataset", "toolkit.record"),
    ("toolkit.dataset", "toolkit.diagnostics"),
    ("toolkit.dataset", "toolkit.reading"),
    ("toolkit.reading", "toolkit.store"),
    ("toolkit.record", "toolkit.diagnostics"),
    ("toolkit.regions", "toolkit.runs"),
    ("toolkit.composites", "toolkit.runs"),
    ("toolkit.solvers", "toolkit.children"),
    ("toolkit.store", "toolkit.record"),
    ("toolkit.later", "toolkit.record"),
    ("toolkit.runs", "toolkit.comfy"),
    ("toolkit.comfy.files", "torch"),
]
# these are imported without torch, whatever they import in turn
WITHOUT_TORCH = [
    "accessor",
    "dataset",
    "diagnostics",
    "errors",
    "fitting",
    "gits",
    "grids",
    "levels",
    "paths",
    "reading",
    "schedules",
    "spaces",
    "tables",
    "testing",
    "typefaces",
    "views",
]


def read_package() -> dict[str, str]:
    """Source by dotted name; a package has the name of its folder."""
    named = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = ["toolkit", *file.relative_to(ROOT).with_suffix("").parts]
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text(encoding="utf-8")
    return named


SOURCES = read_package()


def below(name: str, top: str) -> bool:
    return name == top or name.startswith(top + ".")


def packages(sources: dict[str, str]) -> set[str]:
    return {name for name in sources if any(other.startswith(name + ".") for other in sources)} | {"toolkit"}


def at_import(tree: ast.AST):
    """The nodes that run when a module is imported: all but bodies of functions and of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        deferred = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if not deferred and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from at_import(node)


def imports(name: str, sources: dict[str, str], everywhere: bool = False) -> set[str]:
    """Dotted names that a module imports: on import, or `everywhere`, in its functions too."""
    home = name if name in packages(sources) else name.rpartition(".")[0]
    tree, found = ast.parse(sources[name]), set()
    for node in ast.walk(tree) if everywhere else at_import(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            whole = {alias.name: f"{base}.{alias.name}" for alias in node.names}
            found |= {path if path in sources else base for path in whole.values()}
    return found - {name}


def circles(sources: dict[str, str]) -> list[str]:
    """Each circle among the imports at module level, as one line."""
    edges = {name: sorted(imports(name, sources) & set(sources) - {"toolkit"}) for name in sources}
    done, found = set(), []

    def walk(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for other in edges[name]:
                walk(other, (*trail, name))
            done.add(name)

    for name in edges:
        walk(name, ())
    return found


def crossings(sources: dict[str, str], who: str, whom: str) -> list[str]:
    lower = [name for name in sources if below(name, who)]
    return [n for n in lower if any(below(i, whom) for i in imports(n, sources, everywhere=True))]


def loads_torch(sources: dict[str, str], name: str) -> bool:
    """Whether importing a module imports torch, directly or by what it imports, its packages included."""
    seen, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        parents = {name.rsplit(".", k)[0] for k in range(1, name.count(".") + 1)}
        needed = imports(name, sources) | parents
        if any(below(i, "torch") for i in needed):
            return True
        seen.add(name)
        waiting += [i for i in needed & set(sources) if i not in seen]
    return False


def long_functions(source: str) -> list[str]:
    """Functions whose code is over the limit, without a comment right above them that gives the reason.

    A docstring is not code: what shapes, errors and an example take is not held against a function.
    """
    lines, found = source.split("\n"), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            excused = first > 1 and lines[first - 2].lstrip().startswith("#")
            text = node.body[0] if ast.get_docstring(node) is not None else None
            length = node.end_lineno - node.lineno + 1 - (text.end_lineno - text.lineno + 1 if text else 0)
            if length > LONGEST_FUNCTION and not excused:
                found.append(f"{node.name}: {length} lines")
    return found


def shadowed(sources: dict[str, str]) -> list[str]:
    """Names that a package binds and that are also one of its modules, without being that module."""
    found = []
    for package in packages(sources) & set(sources):
        for node in at_import(ast.parse(sources[package])):
            if isinstance(node, ast.ImportFrom):
                base = "" if node.module is None else f"{node.module}."
                bound = [(a.asname or a.name, f"{package}.{base}{a.name}") for a in node.names]
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                bound = [(node.name, "")]
            else:
                bound = []
            found += [f"{package}.{n}" for n, is_ in bound if f"{package}.{n}" in set(sources) - {is_}]
    return found


def prints(source: str) -> list[int]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_no_circles():
    assert circles(SOURCES) == []


@pytest.mark.parametrize("who, whom", NEVER)
def test_layers(who, whom):
    assert crossings(SOURCES, who, whom) == []


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_without_torch(name):
    modules = [module for module in SOURCES if below(module, f"toolkit.{name}")]
    assert modules, f"toolkit.{name} is gone: take it off the list"
    assert [module for module in modules if loads_torch(SOURCES, module)] == []


@pytest.mark.parametrize("name", SOURCES)
def test_sizes_and_prints(name):
    lines = sum(1 for line in SOURCES[name].splitlines() if line.strip())
    assert lines <= MOST_LINES
    assert long_functions(SOURCES[name]) == []
    assert prints(SOURCES[name]) == []


def test_import_is_light():
    heavy = ["torch", "diffusers", "transformers", "matplotlib.pyplot", "dask"]
    code = f"import sys, toolkit; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_run_loads_neither_diffusers_nor_transformers():
    """Nor does any public name; a pipeline does, once one is loaded."""
    code = """
import sys, numpy, toolkit as tk
for name in tk.__all__:
    getattr(tk, name)
model = tk.denoiser(lambda x, sigma: 0.5 * x)
run = tk.unsample(model, numpy.ones((1, 1, 4, 4)), inverse="reverse", steps=2, progress=False)
assert run.attrs["versions"]["diffusers"]
print([name for name in ("diffusers", "transformers") if name in sys.modules], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] True"


def test_public_names_are_no_modules():
    modules = {name.split(".")[1] for name in SOURCES if "." in name}
    same = [name for name in tk.__all__ if name in modules]
    assert [n for n in same if getattr(tk, n) is not importlib.import_module(f"toolkit.{n}")] == []
    assert shadowed(SOURCES) == []


@pytest.mark.parametrize("name", tk.__all__)
def test_every_public_name_is_there(name):
    assert getattr(tk, name) is not None


def test_the_checks_find_what_they_look_for():
    fake = {
        "toolkit": "",
        "toolkit.a": "from .b import f",
        "toolkit.b": "class C:\n    from . import a",
        "toolkit.c": "def g():\n    from .a import f\n    import torch.nn",
        "toolkit.d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import x\nimport torch",
        "toolkit.e": "from .deep.inner import f",
        "toolkit.deep": "from ..d import torch\nfrom .inner import inner",
        "toolkit.deep.inner": "def inner(): print(1)",
    }
    assert circles(fake) == ["toolkit.a -> toolkit.b -> toolkit.a"]
    assert crossings(fake, "toolkit.c", "toolkit.a") == ["toolkit.c"]
    assert crossings(fake, "toolkit.c", "torch") == ["toolkit.c"]
    assert crossings(fake, "toolkit.deep", "toolkit.d") == ["toolkit.deep"]
    assert [name for name in fake if loads_torch(fake, name)] == [
        "toolkit." + n for n in ("d", "e", "deep", "deep.inner")
    ]
    assert shadowed(fake) == ["toolkit.deep.inner"]
    assert prints(fake["toolkit.deep.inner"]) == [1]
    body = "    pass\n" * LONGEST_FUNCTION
    assert long_functions(f"x = 1\ndef f():\n{body}") == [f"f: {LONGEST_FUNCTION + 1} lines"]
    assert long_functions(f"# a table of weights\ndef f():\n{body}") == []
