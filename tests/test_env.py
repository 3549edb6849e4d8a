"""The environment files point to pyproject.toml, agree with it, and name commands that exist."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))


def resolved(requirements: list[str]) -> list[Requirement]:
    """Requirements with our own extras replaced by what they hold."""
    found = []
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:
            found += [r for extra in sorted(requirement.extras) for r in resolved(EXTRAS[extra])]
        else:
            found.append(requirement)
    return found


def test_the_conda_environment_is_a_thin_pointer():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *packages, pip = environment["dependencies"]
    assert packages == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[test]"]}


def test_python_is_the_same_everywhere():
    assert PROJECT["requires-python"] == ">=3.11"
    assert "sys.version_info < (3, 11)" in MAKEFILE


def test_torch_is_pinned_and_the_package_allows_the_pin():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    allowed = {r.name: r.specifier for r in resolved([*PROJECT["dependencies"], *EXTRAS["test"]])}
    assert "torch" in pins
    for name, pin in pins.items():
        (exactly,) = pin.specifier
        assert exactly.operator == "==" and "*" not in exactly.version, f"{name} is not pinned exactly"
        assert SpecifierSet(str(allowed[name])).contains(exactly.version)


def test_extras_resolve():
    names = {r.name for r in resolved(EXTRAS["test"])}
    assert {"pytest", "nbval", "jupyterlab", "papermill", "scikit-learn"} <= names
    assert PROJECT["name"] not in names
    assert all(
        r.extras <= EXTRAS.keys() for r in map(Requirement, EXTRAS["test"]) if r.name == PROJECT["name"]
    )


def test_the_licence_is_there_in_full():
    text = (ROOT / PROJECT["license-files"][0]).read_text("utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("name", ["README.md", ".ci/run"])
def test_commands_named_elsewhere_exist(name: str):
    text = (ROOT / name).read_text("utf-8")
    named = set(re.findall(r"(?:^|`)(?:exec )?make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert named and named <= TARGETS


def test_each_command_is_phony_and_explained():
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split())
    explained = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert phony == explained == TARGETS
    assert {"help", "demo", "test", "test-slow", "lab", "lint", "clean"} <= TARGETS
