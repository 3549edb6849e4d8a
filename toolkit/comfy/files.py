"""ComfyUI's `.latent` files, both ways: safetensors with a latent in the space of the VAE. No torch here."""

import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import xarray as xr

from ..dataset import attributes, latent_coordinates
from ..errors import bad
from ..spaces import in_space

TENSOR, VERSION = "latent_tensor", "latent_format_version_0"
OLD = 1.0 / 0.18215  # files without VERSION hold latents of Stable Diffusion 1 as its network sees them
OURS = "toolkit"  # the entry of the metadata that is ours
DIMS = ("sample", "channel", "y", "x")
RUNG = ("step", "sigma", "timestep", "alpha", "log_snr")  # what a row knows of its place in a run
LOAD = 'tk.comfy.load_latent("image.latent")'
SAVE = 'tk.comfy.save_latent(run, "image.latent")'


def load_latent(path: str | PathLike[str], model: Any = None) -> xr.DataArray:
    """A latent that ComfyUI's `SaveLatent` wrote, or `tk.comfy.save_latent`, as labelled data.

    Parameters
    ----------
    path : path
        Of a `.latent` file.
    model : Model, optional
        Puts the latent into the space of its network, as ``tk.unsample`` takes it: (z - shift) * scale. None
        leaves it in the space of the VAE, as the file has it and the nodes in `tk.comfy` take it.

    Returns
    -------
    DataArray (sample, channel, y, x)
        float32; float64 in model space. Files of the older format, without ``latent_format_version_0``, are
        multiplied by 1/0.18215. Attributes: ``latent_space``, "vae" or "model"; ``metadata``, the texts in
        the file by name (ComfyUI's are JSON: `prompt` has the graph as it ran, `workflow` as it is drawn);
        of what we wrote, ``run``, the attributes of its run. Its rung is in the coordinates.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError, TypeError
        For a file that is not safetensors or was cut off, that holds no latent, or one of a video; for a
        model of other channels.

    Source: the nodes `SaveLatent` and `LoadLatent` of ComfyUI, by the files that they write and take.

    Examples
    --------
    >>> import tempfile, toolkit as tk
    >>> model, folder = tk.load(), tempfile.mkdtemp()
    >>> run = tk.unsample(model, model.encode(tk.assets.digits()[0][0]), steps=4, progress=False)
    >>> file = tk.comfy.save_latent(run, folder + "/noise.latent")
    >>> latent = tk.comfy.load_latent(file)
    >>> latent.shape, latent.attrs["latent_space"], round(float(latent.sigma), 2)
    ((1, 4, 8, 8), 'vae', 14.61)
    >>> tk.comfy.unsampler(model, steps=2, latent_image=latent).sizes["step"]
    3
    >>> noise = tk.comfy.load_latent(file, model)
    >>> tk.sample(model, noise, add_noise=False, steps=2, progress=False).sizes["step"]
    3
    """
    values, metadata = _read(path)
    if values.ndim != 4 or 0 in values.shape:
        what = "a latent of a video; this is for images" if values.ndim == 5 else "not a latent of images"
        raise bad("path", str(path), f"{TENSOR} has the shape {values.shape}: {what}", LOAD)
    own = _own(metadata)
    if own:
        del metadata[OURS]
    coordinates = latent_coordinates(values.shape)
    for name, value in own.get("rung", {}).items():
        coordinates[name] = ((), value, attributes(name))
    facts = {"latent_space": "vae", "metadata": metadata} | ({"run": own["run"]} if own else {})
    named = {"long_name": "latent", "units": "1"}
    latent = xr.DataArray(values, coordinates, DIMS, "latent", named | facts)
    if model is None:
        return latent
    scale, shift = _factors(model)
    if model.channels not in (None, values.shape[1]):
        why = f"this model has {model.channels} channels, and the latent in {path} {values.shape[1]}"
        raise bad("model", model, why, LOAD)
    moved = values.astype(np.float64)
    if moved.any():  # zeros stay zeros, as in ComfyUI
        moved = (moved - shift) * scale
    return latent.copy(data=moved).assign_attrs(latent_space="model", latent_scale=scale, latent_shift=shift)


def save_latent(dataset: Any, path: str | PathLike[str], step: int = -1, model: Any = None,
                metadata: Mapping[str, Any] | None = None) -> FilePath:  # fmt: skip
    """A `.latent` file that ComfyUI's `LoadLatent` reads, of a row of a run or of any latent.

    Parameters
    ----------
    dataset : Dataset, DataArray, array or tensor (sample, channel, y, x), or ComfyUI's dict with "samples"
        A run knows in which space its states are, and so does what `load_latent` returned; any other array
        is in the space of the VAE, unless there is a `model`.
    path : path
        Of the file, with the suffix `.latent`. One that is there is replaced when the new one is whole;
        folders are made.
    step : int
        The row of a run, counted from the last where it is negative.
    model : Model, optional
        Whose scale and shift lead from its space to that of the VAE; None: those in the run's attributes.
    metadata : mapping, optional
        More texts for the file, by name; what is no text is written as JSON. ComfyUI finds a graph under
        `workflow` and `prompt`; those of the file that a latent was loaded from are kept.

    Returns
    -------
    Path
        The file: float32 in the space of the VAE. The attributes of a run, and the place of the row in it,
        are in the metadata, and `load_latent` returns them.

    Raises
    ------
    ValueError, TypeError
        For NaN, Inf or what float32 cannot hold; for other shapes, a video's among them; for normalised
        states, a row that is not there, another suffix. OSError where the file cannot be written.

    Warns
    -----
    UserWarning
        Where a dict has more than samples (`noise_mask`, `batch_index`): the format has no room for it.

    Notes
    -----
    A state is written as it is. On flow models ComfyUI's samplers multiply what they go on from by 1 -
    sigma: for them, save ``run.latent[step] / run.alpha[step]`` and give the `model`.

    Examples
    --------
    >>> import tempfile, toolkit as tk
    >>> model = tk.load()
    >>> latent = model.encode(tk.assets.digits()[0][0])
    >>> file = tk.comfy.save_latent(latent, tempfile.mkdtemp() + "/digit.latent", model=model)
    >>> file.name, bool(abs(tk.comfy.load_latent(file, model) - latent.numpy()).max() < 1e-6)
    ('digit.latent', True)
    """
    if not isinstance(path, (str, PathLike)):
        raise bad("path", path, "the path of a file", SAVE, TypeError)
    file = FilePath(path)
    if file.suffix != ".latent":
        line = f'tk.comfy.save_latent(run, "{file.with_suffix(".latent").name}")'
        raise bad("path", str(path), "ComfyUI finds files with the suffix .latent only", line)
    latent = _latent(dataset, step)
    texts = {**latent.attrs.get("metadata", {}), **_checked(metadata)}
    rung = {name: latent[name].item() for name in RUNG if name in latent.coords and not latent[name].ndim}
    if rung or "run" in latent.attrs:
        texts[OURS] = {"run": latent.attrs.get("run", {}), "rung": rung}
    texts = {name: v if isinstance(v, str) else json.dumps(v, default=repr) for name, v in texts.items()}
    values = _in_float32(latent, model)
    tensors = {TENSOR: values, VERSION: np.zeros(0, np.float32)}
    fresh = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(safetensors.numpy.save(tensors, texts))
        os.replace(fresh, file)
    except OSError as exc:
        raise bad("path", str(path), f"cannot be written ({exc})", SAVE, type(exc)) from exc
    finally:
        with suppress(OSError):
            fresh.unlink()
    return file


# --- reading ----


def _read(path: Any) -> tuple[np.ndarray, dict[str, str]]:
    """The tensor, float32, in the space of the VAE, and the texts beside it."""
    if not isinstance(path, (str, PathLike)):
        raise bad("path", path, "the path of a .latent file", LOAD, TypeError)
    file = FilePath(path)
    if not file.is_file():
        named = file.with_name(file.name + ".latent")
        line = f'tk.comfy.load_latent("{named}")' if named.is_file() else LOAD
        raise bad("path", str(path), "there is no such file", line, FileNotFoundError)
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            names, metadata = list(opened.keys()), opened.metadata() or {}
            kind = opened.get_slice(TENSOR).get_dtype() if TENSOR in names else None
            values = opened.get_tensor(TENSOR) if kind in ("F16", "F32", "F64") else None
    except safetensors.SafetensorError as exc:
        why = f"not a safetensors file, or one that was cut off ({exc})"
        raise bad("path", str(path), why, LOAD) from exc
    if kind is None:
        shown = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
        why = f"a safetensors file without {TENSOR}; it holds {shown or 'nothing'}"
        raise bad("path", str(path), why, LOAD)
    if kind == "BF16":
        values = _bfloat16(file)
    if values is None:
        raise bad("path", str(path), f"{TENSOR} is of the dtype {kind}, and latents are floating", LOAD)
    values = values.astype(np.float32)
    return (values if VERSION in names else values * np.float32(OLD)), dict(metadata)


def _bfloat16(file: FilePath) -> np.ndarray:
    """NumPy has no bfloat16: it is the upper half of a float32."""
    found = dict(safetensors.deserialize(file.read_bytes()))[TENSOR]
    upper = np.frombuffer(found["data"], "<u2").astype(np.uint32)
    return (upper << 16).view(np.float32).reshape(found["shape"])


def _own(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What we wrote of the run; nothing, where somebody else has an entry of this name."""
    try:
        found = json.loads(metadata.get(OURS, "null"))
    except ValueError:
        return {}
    parts = isinstance(found, dict) and found.keys() == {"run", "rung"}
    return found if parts and all(isinstance(part, dict) for part in found.values()) else {}


# --- writing ----


def _latent(given: Any, step: Any) -> xr.DataArray:
    """(sample, channel, y, x), with the attributes of what `load_latent` returns; the space may be unsaid."""
    if isinstance(given, xr.Dataset):
        return _row(given, step)
    if isinstance(given, Mapping):
        if "samples" not in given:
            raise bad("dataset", list(given), "a dict with the key samples", SAVE)
        lost = [str(name) for name, value in given.items() if name != "samples" and value is not None]
        if lost:
            told = f"{', '.join(lost)}: left out, since a .latent file has room for samples only"
            warnings.warn(told, UserWarning, stacklevel=3)
        given = given["samples"]
    if isinstance(given, xr.DataArray):
        if set(given.dims) != set(DIMS):
            wanted = "a run's row has the dims sample, channel, y, x"
            raise bad("dataset", given.dims, wanted, f"{SAVE[:-1]}, step=-1)")
        return given.transpose(*DIMS)
    if hasattr(given, "detach"):  # a tensor, and then torch is here
        from ..inputs import host

        given = host(given)
    if not isinstance(given, np.ndarray):
        wanted = "a run, a DataArray, an array, a tensor, or a dict with samples"
        line = f"{SAVE.replace('run', 'model.encode(image)')[:-1]}, model=model)"
        raise bad("dataset", type(given), wanted, line, TypeError)
    if given.ndim != 4:
        kind = "; latents of a video are not for this format" if given.ndim == 5 else ""
        raise bad("dataset", given.shape, f"of shape (sample, channel, y, x){kind}", SAVE)
    return xr.DataArray(given, dims=DIMS)


def _row(ds: xr.Dataset, step: Any) -> xr.DataArray:
    """One row of a run; the run's attributes are among its own."""
    if "latent" not in ds or set(ds.latent.dims) - {"step"} != set(DIMS):
        why = "a run has a variable `latent` with the dims step, sample, channel, y, x"
        raise bad("dataset", list(ds.data_vars), why, SAVE)
    latent = ds.latent
    if "step" in latent.dims:
        rows = latent.sizes["step"]
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)):
            raise bad("step", step, "the number of a row", f"{SAVE[:-1]}, step=-1)", TypeError)
        if not -rows <= step < rows:
            raise bad("step", step, f"this run has {rows} rows", f"{SAVE[:-1]}, step={rows - 1})")
        latent = latent.isel(step=int(step))
    facts = dict(ds.attrs)
    # the metadata of a file, where the caller put it
    texts = facts.pop("metadata") if isinstance(facts.get("metadata"), Mapping) else {}
    told = {name: facts.get(name) for name in ("latent_space", "normalized")}
    factors = {name: facts[name] for name in ("latent_scale", "latent_shift") if name in facts}
    return latent.transpose(*DIMS).assign_attrs(told | factors, metadata=texts, run=facts)


def _in_float32(latent: xr.DataArray, model: Any) -> np.ndarray:
    """Its values in the space of the VAE, of a kind and size that a file can have."""
    if latent.dtype.kind != "f" or 0 in latent.shape:
        raise bad("dataset", f"{latent.dtype} of shape {latent.shape}", "floating, none of them 0", SAVE)
    facts = {"latent_space": "vae" if model is None else "model"} | latent.attrs
    if model is not None:
        facts["latent_scale"], facts["latent_shift"] = _factors(model)
    facts["normalized"] = facts.get("normalized") or "off"
    run = xr.Dataset({"latent": latent.astype(np.float64)}, attrs=facts)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(in_space(run, "vae").latent.values, np.float32)
    if not np.isfinite(values).all():
        where = f" in row {int(latent.step)}" if "step" in latent.coords else ""
        raise bad("dataset", f"NaN or Inf{where}", "finite numbers that float32 holds", SAVE)
    return values


def _factors(model: Any) -> tuple[float, float]:
    """Scale and shift of a model; what knows them needs torch."""
    from ..denoisers import as_model
    from .latents import factors

    return factors(as_model(model))


def _checked(metadata: Any) -> dict[str, Any]:
    """More entries for the header, each text or what JSON can say."""
    line = f'{SAVE[:-1]}, metadata={{"workflow": workflow}})'
    if not isinstance(metadata, (Mapping, type(None))) or any(not isinstance(k, str) for k in metadata or ()):
        raise bad("metadata", metadata, "a dict of texts by name", line, TypeError)
    if OURS in (metadata or {}):
        raise bad("metadata", OURS, "this entry is where the run's own attributes are", line)
    try:
        json.dumps(dict(metadata or {}))
    except (TypeError, ValueError) as exc:
        raise bad("metadata", list(metadata), f"what JSON can say ({exc})", line, TypeError) from exc
    return dict(metadata or {})
