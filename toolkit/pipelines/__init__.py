"""Models ready to use: `load`, an adapter for each family of diffusers pipelines, and the photographs."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path as FilePath
from typing import Any

from ..denoisers import Model
from ..errors import bad

DIGITS = FilePath(__file__).parent.parent / "assets" / "digits"

# name -> module of this package with `build(device, dtype, **options) -> Model`
CLOSED_FORMS = {"photographs": "photographs"}
# pipeline class -> module of this package with `adapt(pipe) -> Model`
FAMILIES = {"DiTPipeline": "dit"}
UNKNOWN = f"not a pipeline this version runs; there are {', '.join(FAMILIES)}"


def load(source: Any = None, *, device: Any = None, dtype: Any = None, **options: Any) -> Model:
    """A model to unsample with: images in and out, conditions, path and levels, all read from the pipeline.

    Parameters
    ----------
    source : str, path or pipeline, optional
        None is the embedded class-conditional digits pipeline (no network); "photographs" a closed-form model
        of two photographs in colour (no network, needs scikit-learn); else a folder or hub id of a diffusers
        `DiTPipeline`, or such a pipeline that is in memory already.
    device : str or torch.device, optional
        Where the model runs; None leaves a pipeline where it is, and is the CPU for one that is loaded.
    dtype : torch.dtype, optional
        Of the networks: float32 where None. The state of a run stays float64, and so does all of a closed
        form, which takes no other.
    **options
        Passed to ``from_pretrained`` (revision, cache_dir, ...); "photographs" takes path and levels.

    Returns
    -------
    Model
        With ``encode(image) -> (sample, channel, y, x)`` in model space, ``decode(latent) -> (sample, y, x,
        rgb)`` in 0..1, ``path``, ``levels``, ``channels``, ``shape``.

    Raises
    ------
    ValueError, TypeError
        For a source that is no pipeline, and for a family that is not supported. OSError with the hub's
        reason where a repository cannot be had; ImportError for "photographs" without scikit-learn.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.load()
    digits(path=VE, latent=4 x 8 x 8, sigma=0.02917 to 14.61, prediction=v, classes=10, dtype=float32)
    >>> tk.load("photographs").shape
    (16, 64, 64)
    """
    import torch

    line = 'tk.load(), tk.load("photographs"), tk.load("path/to/a/DiTPipeline"), or tk.load(pipe)'
    if device is not None:
        try:
            kind = torch.device(device).type
        except (RuntimeError, TypeError):
            raise bad("device", device, "a device that torch knows", 'tk.load(device="cpu")') from None
        if kind == "cuda" and not torch.cuda.is_available():
            raise bad("device", device, "there is no CUDA device here", 'tk.load(device="cpu")')
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise bad("dtype", dtype, "a floating torch dtype", "tk.load(dtype=torch.float32)", TypeError)
    if isinstance(source, str) and source in CLOSED_FORMS:
        home = importlib.import_module(f".{CLOSED_FORMS[source]}", __name__)
        return home.build(device=device, dtype=dtype, **options)
    source = "digits" if source is None else source
    if isinstance(source, (str, PathLike)):
        name = str(source)
        pipe = _read(DIGITS if name == "digits" else source, dtype or torch.float32, options, line)
    else:
        name, pipe = type(source).__name__, source
    family = type(pipe).__name__
    if family not in FAMILIES:
        raise bad("source", family, UNKNOWN, line, TypeError)
    if pipe is source and dtype is not None:
        pipe.to(dtype=dtype)
    if device is not None:
        pipe.to(device)
    return importlib.import_module(f".{FAMILIES[family]}", __name__).adapt(pipe, name)


def _read(source: str | PathLike[str], dtype: Any, options: dict[str, Any], line: str) -> Any:
    """The pipeline of a folder, or of a hub id; folders are read without the network."""
    import diffusers

    folder = FilePath(source)
    if folder.exists():
        index = folder / "model_index.json"
        if not index.is_file():
            why = "this folder holds no model_index.json of a diffusers pipeline"
            raise bad("source", str(source), why, line)
        try:
            family = json.loads(index.read_text()).get("_class_name")
        except (ValueError, AttributeError) as exc:
            raise bad("source", str(source), f"its model_index.json cannot be read ({exc})", line) from exc
        if family not in FAMILIES:
            raise bad("source", family, UNKNOWN, line)
        options = {"local_files_only": True, **options}
    elif len(folder.parts) != 2 or str(source).startswith((".", "/", "~")):
        raise bad("source", str(source), "neither a folder that exists nor a hub id owner/name", line)
    # low_cpu_mem_usage asks for accelerate; an older diffusers, with torch_dtype, ignores dtype: hence `to`
    options = {"dtype": dtype, "use_safetensors": True, "low_cpu_mem_usage": False, **options}
    with _quiet(diffusers.utils.logging):
        return diffusers.DiffusionPipeline.from_pretrained(str(source), **options).to(dtype)


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """diffusers remarks on every DiT folder's labels, and draws a bar for a short load; errors stay."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
