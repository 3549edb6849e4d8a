"""Models ready to use: `load`, an adapter for each family of diffusers pipelines, and the photographs."""

import importlib
from os import PathLike
from pathlib import Path as FilePath
from typing import Any

from ..denoisers import Model
from ..errors import bad

DIGITS = FilePath(__file__).parent.parent / "assets" / "digits"

# name -> module of this package with `build(device, dtype, **options) -> Model`
CLOSED_FORMS = {"photographs": "photographs"}
# class of a pipeline's denoiser -> module of this package and its adapter, a Model of (pipe, name, asked)
FAMILIES = {
    "UNet2DConditionModel": ("stable", "Stable"),
    "SD3Transformer2DModel": ("sd3", "SD3"),
    "FluxTransformer2DModel": ("flux", "Flux"),
    "DiTTransformer2DModel": ("dit", "DiT"),
    "UNet2DModel": ("unet2d", "UNet2D"),
}


def load(source: Any = None, *, device: Any = None, dtype: Any = None, max_rows: int | None = None,
         compile: bool = False, guidance: float | None = None, **options: Any) -> Model:  # fmt: skip
    """A model to unsample with: images in and out, conditions, path and levels, all read from the pipeline.

    Parameters
    ----------
    source : str, path or pipeline, optional
        None is the embedded class-conditional digits pipeline (no network); "photographs" a closed-form model
        of two photographs in colour (no network, needs scikit-learn); else a folder or hub id of a diffusers
        pipeline (Stable Diffusion 1, 2, XL and 3, Flux, DiT, DDPM: any whose denoiser is one of
        `FAMILIES`), a checkpoint in one ``.safetensors`` file, or a pipeline that is in memory already.
    device : str or torch.device, optional
        Where the model runs; None leaves a pipeline where it is, and is the CPU for one that is loaded.
    dtype : torch.dtype, optional
        Of the networks: float32 where None. The state of a run stays float64, and so does all of a closed
        form, which takes no other.
    max_rows : int, optional
        Most network rows (samples times conditions) of one forward; None is all at once.
    compile : bool
        Compile the network, on CUDA into graphs: the first call takes a minute, the next ones less time, and
        the answers are the same to the network's precision. A compiled network wants one batch and size.
    guidance : float, optional
        What a guidance-distilled network is told (Flux dev: 3.5 where None; LCM: 7.5); others take none.
    **options
        Passed to ``from_pretrained`` or ``from_single_file`` (revision, variant, cache_dir, a component such
        as vae=, config= of a single file, ...); "photographs" takes path and levels.

    Returns
    -------
    Model
        With ``encode(image) -> (sample, channel, y, x)`` in model space, ``decode(latent) -> (sample, y, x,
        rgb)`` in 0..1, ``path``, ``levels``, ``channels``, ``shape``. One that takes any size has
        ``sized(height, width)``, one that takes texts ``condition(text)``.

    Raises
    ------
    ValueError, TypeError
        For a source that is no pipeline or a pickle, and for a family that is not supported. OSError with
        the hub's reason where a repository cannot be had; ImportError for "photographs" without scikit-learn.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.load()
    digits(path=VE, latent=4 x 8 x 8, sigma=0.02917 to 14.61, prediction=v, classes=10, dtype=float32)
    >>> tk.load("photographs").shape
    (16, 64, 64)
    """
    import torch

    from .adapter import Asked

    _check_device(device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise bad("dtype", dtype, "a floating torch dtype", "tk.load(dtype=torch.float32)", TypeError)
    if isinstance(source, str) and source in CLOSED_FORMS:
        home = importlib.import_module(f".{CLOSED_FORMS[source]}", __name__)
        given = {"max_rows": max_rows, "compile": compile or None, "guidance": guidance}
        options |= {name: value for name, value in given.items() if value is not None}
        return home.build(device=device, dtype=dtype, **options)
    asked = Asked(*_checked(max_rows, compile, guidance))
    source = "digits" if source is None else source
    if isinstance(source, (str, PathLike)):
        from .reading import read

        name = str(source)
        pipe = read(DIGITS if name == "digits" else source, dtype or torch.float32, options, FAMILIES)
    else:
        name, pipe = type(source).__name__, source
        for option, value in options.items():
            raise bad(option, value, "a pipeline in memory is taken as it is", "tk.load(pipe)", TypeError)
    module, adapter = FAMILIES[_family(pipe)]
    if pipe is source and dtype is not None:
        pipe.to(dtype=dtype)
    if device is not None:
        pipe.to(device)
    return getattr(importlib.import_module(f".{module}", __name__), adapter)(pipe, name, asked)


def _check_device(device: Any) -> None:
    import torch

    if device is None:
        return
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        raise bad("device", device, "a device that torch knows", 'tk.load(device="cpu")') from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise bad("device", device, "there is no CUDA device here", 'tk.load(device="cpu")')


def _checked(max_rows: Any, compile: Any, guidance: Any) -> tuple[int | None, bool, float | None]:
    """The options of an adapter, or the error for one that is off."""
    from .. import inputs

    if not isinstance(compile, bool):
        raise bad("compile", compile, "True or False", "tk.load(source, compile=True)", TypeError)
    rows = (
        None
        if max_rows is None
        else inputs.whole("max_rows", max_rows, 1, None, "tk.load(source, max_rows=4)")
    )
    told = None if guidance is None else inputs.number("guidance", guidance, "tk.load(source, guidance=3.5)")
    return rows, compile, told


def _family(pipe: Any) -> str:
    """The class of a pipeline's denoiser, which is one of `FAMILIES`."""
    from .reading import unsupported

    for component in ("unet", "transformer"):
        found = type(getattr(pipe, component, None)).__name__
        if found in FAMILIES:
            return found
    if type(pipe).__name__ in FAMILIES:
        why = "a network alone: its levels, prompts and images come from its pipeline"
        raise bad("source", type(pipe).__name__, why, "tk.load(pipe)", TypeError)
    raise unsupported(type(pipe).__name__, FAMILIES)
