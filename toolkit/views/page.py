"""A run as one HTML file: the scrubber's own module, a small model, the payload. No network, no kernel."""

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import bad
from .payload import Payload, build
from .scrubber import defaults, module
from .widget import FOLDER, style

PAGE_BYTES = 3_000_000  # above this, values are kept in 6 bits
SIX_BITS = 62  # highest code then; 63 is not finite

PAGE = """<!DOCTYPE html>
<html lang="en" class="tk tk-page">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main><div id="view"></div></main>
<script type="application/json" id="state">{state}</script>
<script type="text/plain" id="payload">{payload}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _differences(codes: bytes, rungs: int) -> bytes:
    """Codes minus those of the rung before, modulo 256: neighbouring rungs are alike, and so compress."""
    atlas = np.frombuffer(codes, np.uint8).reshape(rungs, -1)
    first = np.zeros_like(atlas[:1])
    return np.diff(atlas, axis=0, prepend=first).tobytes()


def packed(parts: Mapping[str, bytes], strides: Mapping[str, int]) -> tuple[str, dict[str, Any]]:
    """Bytes by trait, gzipped, in base64, and where they lie; with a stride, as differences along step."""
    strides = {name: stride for name, stride in strides.items() if parts[name]}
    parts = {n: _differences(b, len(b) // strides[n]) if n in strides else b for n, b in parts.items()}
    data = gzip.compress(b"".join(parts.values()), 6, mtime=0)  # no clock in a file that may be compared
    layout = {"sizes": [[name, len(part)] for name, part in parts.items()]}
    return base64.b64encode(data).decode(), layout | {"differences": [list(s) for s in strides.items()]}


def packed_bytes(payload: Payload, lut: bytes = b"") -> tuple[str, dict[str, Any]]:
    """All bytes, gzipped, in base64; and where they lie."""
    stride = len(payload.latent) // max(payload.meta["shape"][0], 1)  # a run may have no rung yet
    parts = {
        "_latent": payload.latent,
        "_denoised": payload.denoised,
        "_floats": payload.floats,
        "_pictures": payload.pictures,
        "_lut": lut,
    }
    return packed(parts, {"_latent": stride, "_denoised": stride})


def place(path: str | PathLike[str]) -> Path:
    """Where a page is to be written; raises FileNotFoundError where the folder does not exist."""
    path = Path(path)
    if not path.parent.is_dir():
        line = f"pathlib.Path({str(path.parent)!r}).mkdir(parents=True)"
        raise bad("path", str(path), "its folder does not exist", line, FileNotFoundError)
    return path


def write(path: Path, words: Sequence[str], state: Mapping[str, Any], packed: str, layout: Mapping[str, Any],
          module: str) -> Path:  # fmt: skip
    """Writes a view as a page: its module, the state it begins in, its bytes and where they lie."""
    text = json.dumps({"state": state, **layout}, separators=(",", ":"), allow_nan=False)
    script, css = module + (FOLDER / "page.js").read_text("utf-8"), style()
    allowed = {"default-src": "'none'", "script-src": _hash(script), "style-src": _hash(css)}
    allowed |= {"base-uri": "'none'", "form-action": "'none'"}
    policy = "; ".join(" ".join(pair) for pair in allowed.items())
    parts = {"title": html.escape(" · ".join(words)), "state": text.replace("<", "\\u003c")}
    path.write_text(PAGE.format(policy=policy, style=css, payload=packed, script=script, **parts), "utf-8")
    return path


def to_html(dataset: xr.Dataset, path: str | PathLike[str], model: Any = None) -> Path:
    """Write a run as one self-contained page that can be scrubbed anywhere.

    Parameters
    ----------
    dataset : Dataset
        A recorded run with `latent` (step, sample, channel, y, x).
    path : path
        Where to write; the folder must exist. An existing file is replaced.
    model : optional
        Anything with ``decode(latent)``; adds decoded images.

    Returns
    -------
    Path
        The file. It asks nothing of the network, and works from ``file://``.

    Raises
    ------
    ValueError, TypeError
        For a Dataset that cannot be drawn.
    FileNotFoundError
        Where the folder does not exist.

    Examples
    --------
    >>> import tempfile, toolkit as tk
    >>> folder = tempfile.mkdtemp()
    >>> tk.to_html(tk.testing.ladder_dataset(), folder + "/run.html").name
    'run.html'
    """
    return scrubbed(dataset, build(dataset, model), place(path))


def scrubbed(dataset: xr.Dataset, payload: Payload, path: Path, lut: bytes = b"", **state: Any) -> Path:
    """The page of a payload, which begins in `state`; in 6 bits where 8 would be too many bytes."""
    packed, layout = packed_bytes(payload, lut)
    if len(packed) > PAGE_BYTES:
        small = build(dataset, top=SIX_BITS)  # without the model: its pictures are there
        small.pictures, small.meta["pictures"] = payload.pictures, payload.meta["pictures"]
        payload = small
        packed, layout = packed_bytes(payload, lut)
    words = [payload.meta["title"], *payload.meta["words"]]
    state = defaults(payload) | state | {"_run": payload.meta}
    return write(path, words, state, packed, layout, module())
