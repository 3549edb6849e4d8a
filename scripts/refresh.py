"""What is stored of the notebooks, made anew: their outputs, README's tables and its two strips of pictures.

`make refresh` runs it, after a change of the model or its numbers; `make test` compares with what is stored.
"""

import base64
import os
import re
from itertools import chain
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"  # its state is not stored: the picture beside it is shown
STRIP = "<IPython.core.display.Image object>"
PICTURES = {
    "strip.png": "01_unsample.ipynb",
    "photographs.png": "04_solver_atlas.ipynb",
}  # docs/ -> the first of


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook run with its own parameters, as it is to be stored."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", resources=where, store_widget_state=False).execute()
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k == "kernelspec"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # clock times
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            cell.outputs = []
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def outputs(name: str) -> list:
    """Of all cells of a stored notebook."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    return list(chain.from_iterable(cell.get("outputs", []) for cell in notebook.cells))


def main() -> None:
    """Store the notebooks, and what README shows of the first."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(path.relative_to(ROOT))
    for name, notebook in PICTURES.items():
        shown = [o.data for o in outputs(notebook) if o.get("data", {}).get("text/plain") == STRIP]
        (ROOT / "docs" / name).write_bytes(base64.b64decode(shown[0]["image/png"]))

    texts = (o.get("text", "") for o in outputs("01_unsample.ipynb"))
    printed = [re.search(r"^solver .*", text, re.MULTILINE | re.DOTALL) for text in texts]
    tables = iter([found.group().rstrip() for found in printed if found])
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    shown = re.sub(r"```text\n.*?```", lambda _: f"```text\n{next(tables)}\n```", text, flags=re.DOTALL)
    readme.write_text(shown, "utf-8")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # the kernels inherit it
    main()
