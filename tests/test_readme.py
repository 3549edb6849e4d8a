"""The README's code runs as it stands, and its figures are those of notebook 01."""

import re
from pathlib import Path

import nbformat
import pytest

import toolkit as tk

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: f"line {README[: README.index(block)].count(chr(10))}"
)
def test_code_runs_as_it_stands(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tk.SOLVERS, "_entries", dict(tk.SOLVERS))  # a solver of one's own is registered
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_first_block_is_six_lines():
    lines = [line for line in BLOCKS[0].splitlines() if line and not line.startswith("import")]
    assert len(lines) == 6


def test_the_tables_are_those_of_the_notebook():
    cells = nbformat.read(ROOT / "notebooks" / "01_unsample.ipynb", 4).cells
    printed = "".join(o.text for c in cells if c.cell_type == "code" for o in c.outputs if "text" in o)
    rows = re.findall(r"^(?:euler|dpmpp_2m|obelm) .*$", README, re.MULTILINE)
    assert len(rows) == 7
    assert all(row in printed for row in rows)


def test_pictures_and_files_that_are_named_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    local = [link for link in links if not link.startswith("http")]
    assert {"docs/strip.png", "docs/atlas.png", "docs/photographs.png"} <= set(local)
    assert not [link for link in local if not (ROOT / link).exists()]
