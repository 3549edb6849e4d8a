"""Every public name is explained by an example, and every example of the package runs."""

import doctest
import importlib
import inspect
import pkgutil
import re
from types import ModuleType

import pytest

import toolkit as tk

SPACES = [name for name in tk.__all__ if inspect.ismodule(getattr(tk, name))]
MODULES = sorted({"toolkit", *(m.name for m in pkgutil.walk_packages(tk.__path__, "toolkit."))})
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def names_of(module: ModuleType) -> list[str]:
    """What a module offers: its ``__all__``, else what it defines itself."""
    own = [
        name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__
    ]
    return getattr(module, "__all__", [name for name in own if not name.startswith("_")])


def public() -> dict[str, object]:
    """Functions and classes by the name that a user types: of the package, and of its public modules."""
    spaces = {"tk": (tk, tk.__all__)} | {
        f"tk.{n}": (getattr(tk, n), names_of(getattr(tk, n))) for n in SPACES
    }
    found = {
        f"{space}.{name}": getattr(home, name) for space, (home, names) in spaces.items() for name in names
    }
    return {
        name: thing for name, thing in found.items() if inspect.isfunction(thing) or inspect.isclass(thing)
    }


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_an_example(name: str):
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert re.search(r"^Examples\n-+$", text, re.MULTILINE), f"{name} has no section Examples"
    assert ">>> " in text


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=FLAGS, report=True)
    assert result.failed == 0


def test_there_are_examples_to_run():
    count = sum(
        len(test.examples)
        for name in MODULES
        for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    )
    assert count > 50
