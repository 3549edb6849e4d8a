"""Where a workflow lies: a JSON file, or the text chunks of a picture that ComfyUI saved. No torch here."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path as FilePath
from typing import Any

from ..errors import bad

LINE = 'tk.comfy.read_workflow("workflow.json")'
EXPORT = f"Workflow > Export in ComfyUI, then {LINE}"
CHUNKS = ("prompt", "workflow")  # the graph as it ran, and as it is drawn
LARGEST = 256 * 2**20  # bytes of a JSON file; the largest workflows have a few MB
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
MAKE, MODEL = 271, 272  # the tags of EXIF in which WebP and JPEG files carry the two


def documents(source: Any) -> tuple[dict[str, Any], str]:
    """What a source holds, {"prompt": ..., "workflow": ...} as far as it does, and what it goes by."""
    if isinstance(source, Mapping):
        return _unwrapped(dict(source), "the dict"), "dict"
    if not isinstance(source, (str, PathLike)):
        raise bad("path", source, "a path, or a parsed workflow", LINE, TypeError)
    path = FilePath(source)
    if path.is_dir():
        raise bad("path", str(path), "a folder; the file of one workflow is wanted", LINE)
    try:
        with path.open("rb") as file:
            head = file.read(4)
            data = head + file.read(LARGEST)
    except FileNotFoundError:
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file. Try: {LINE}") from None
    if head.startswith(PICTURES[0]) or head in PICTURES or head[:3] == PICTURES[1]:
        return _of_picture(path), path.name
    if len(data) > LARGEST:
        raise bad("path", str(path), f"more than {LARGEST // 2**20} MB, which is no workflow", LINE)
    return _unwrapped(_parsed(data, str(path)), str(path)), path.name


def _parsed(data: bytes, name: str) -> Any:
    """JSON of a file's bytes."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        why = "neither JSON nor a PNG, JPEG or WebP picture"
        raise bad("path", name, why, LINE) from None
    if not text.strip():
        raise bad("path", name, "an empty file", EXPORT)
    return _loads(text, name, "this file")


def _loads(text: str, name: str, what: str) -> Any:
    """JSON, or the error that says where it ends being that."""
    try:
        return json.loads(text)
    except RecursionError:
        raise bad("path", name, f"the JSON of {what} is nested too deep", EXPORT) from None
    except ValueError as error:
        at = getattr(error, "pos", 0)
        cut = at >= len(text.rstrip()) - 1 or "Unterminated" in str(error)
        how = "was cut off" if cut else "is damaged"
        why = f"the JSON of {what} {how}, after {at:,} of {len(text):,} characters"
        raise bad("path", name, why, EXPORT) from None


def _of_picture(path: FilePath) -> dict[str, Any]:
    """The chunks of a picture that are JSON of ComfyUI's."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.format == "PNG" and not set(CHUNKS) & set(image.info):
                image.load()  # chunks may follow the pixels
            texts = {
                k: v for k, v in image.info.items() if isinstance(k, str) and isinstance(v, (str, bytes))
            }
            if image.format != "PNG":
                texts |= _of_exif(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise bad("path", str(path), f"this picture cannot be read ({error})", EXPORT) from None
    found = {}
    for name in CHUNKS:
        text = texts.get(name)
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if text and text.strip():
            found[name] = _loads(text, str(path), f"the chunk `{name}`")
    if not found:
        why = "this picture carries no workflow"
        if "parameters" in texts:
            why += "; it has `parameters`, as AUTOMATIC1111's web UI writes them, which are no graph"
        else:
            why += ": ComfyUI writes it into PNG files that `SaveImage` saves, and other programs strip it"
        raise bad("path", str(path), why, EXPORT)
    return _unwrapped(found, str(path))


def _of_exif(image: Any) -> dict[str, str]:
    """The texts "prompt:{...}" and "workflow:{...}" of a WebP or JPEG file."""
    found = {}
    for tag in (MODEL, MAKE):
        text = image.getexif().get(tag)
        for name in CHUNKS:
            if isinstance(text, str) and text.lower().startswith(name + ":"):
                found[name] = text[len(name) + 1 :].rstrip("\0")
    return found


def _unwrapped(given: Any, name: str) -> dict[str, Any]:
    """{"prompt": ..., "workflow": ...} of what was parsed; either may be missing, and not both."""
    if _is_ui(given):
        return {"workflow": given}
    if _is_api(given):
        return {"prompt": given}
    found = {}
    if isinstance(given, Mapping):
        for key, kind in (("prompt", _is_api), ("workflow", _is_ui)):
            inner = given.get(key)
            if isinstance(inner, str):
                inner = _loads(inner, name, f"the entry `{key}`")
            if kind(inner):
                found[key] = inner
        # what the server's history and some galleries wrap it in
        inner = given.get("extra_data", given.get("extra_pnginfo"))
        if not found and isinstance(inner, Mapping):
            return _unwrapped(inner.get("extra_pnginfo", inner), name)
    if not found:
        keys = [str(key) for key in given][:8] if isinstance(given, Mapping) else type(given).__name__
        why = "no workflow of ComfyUI: it has neither `nodes` and `links`, nor entries with a `class_type`"
        raise bad("path", name, f"{why}; it holds {keys}", EXPORT)
    return found


def _is_ui(given: Any) -> bool:
    return isinstance(given, Mapping) and isinstance(given.get("nodes"), list)


def _is_api(given: Any) -> bool:
    if not isinstance(given, Mapping):
        return False
    return any(
        isinstance(node, Mapping) and isinstance(node.get("class_type"), str) for node in given.values()
    )
