"""The two spaces of a latent: as the network sees it ("model"), and as the VAE takes and gives it ("vae").

model = (vae - latent_shift) * latent_scale, with the factors of the model's VAE; they are attributes of every
run, so that a recorded one is converted without its model. `sigma` always counts in model space.
"""

import xarray as xr

from .errors import bad, unknown

SPACES = ("model", "vae")
STATES = ("latent", "denoised", "aux", "top", "mean", "shift")  # scaled and shifted
LENGTHS = ("offset", "std", "scale")  # differences of states: scaled alone


def in_space(ds: xr.Dataset, space: str) -> xr.Dataset:
    """The run with its states in another latent space; the run itself where it is there already.

    Parameters
    ----------
    ds : Dataset
        A recorded run, with ``attrs["latent_space"]``, ``latent_scale`` and ``latent_shift``.
    space : {"model", "vae"}
        "model": as the network sees it, unit std or so. "vae": divided by the scaling factor (0.18215 for
        Stable Diffusion 1), and shifted where the format has a shift: what ComfyUI's nodes hand around.

    Returns
    -------
    Dataset
        `latent`, `denoised`, `aux`, `top`, `mean` and `shift` divided by the factor, plus the shift;
        `offset`, `std` and `scale` divided alone; all else as it was, `sigma` too.

    Raises
    ------
    ValueError, TypeError
        For an unknown space, and for a Dataset that does not say in which space it is.

    Source: ``scaling_factor`` and ``shift_factor`` of diffusers' AutoencoderKL.

    Examples
    --------
    >>> import toolkit as tk
    >>> ds = tk.testing.ladder_dataset().assign_attrs(latent_scale=0.5)
    >>> bool((tk.in_space(ds, "vae").latent == 2 * ds.latent).all())
    True
    """
    line = 'tk.in_space(tk.ladder(model, latent), "vae")'
    if not isinstance(ds, xr.Dataset):
        raise bad("ds", ds, "the Dataset of a run", line, TypeError)
    if space not in SPACES:
        raise unknown("space", space, SPACES, 'tk.in_space(run, "{}")')
    now = ds.attrs.get("latent_space")
    if now not in SPACES:
        raise bad("ds", now, 'attrs["latent_space"] is "model" or "vae" in a run', line)
    if now == space:
        return ds
    if ds.attrs.get("normalized", "off") != "off":
        why = "normalised states are in no space; convert the raw run, and normalise it there"
        raise bad("ds", ds.attrs["normalized"], why, 'tk.normalized(tk.in_space(run, "vae"), "global")')
    scale, shift = float(ds.attrs.get("latent_scale", 1.0)), float(ds.attrs.get("latent_shift", 0.0))
    factor, added = (1.0 / scale, shift) if space == "vae" else (scale, -shift * scale)
    new = {}
    for name in [n for n in (*STATES, *LENGTHS) if n in ds]:
        off = added if name in STATES else 0.0
        if name in ("shift", "scale") and ds.attrs.get("normalize", "off") == "off":
            continue  # 0 and 1: nothing would be normalised
        values = ds[name].values
        moved = (values * factor + off).astype(values.dtype)
        new[name] = (ds[name].dims, moved, ds[name].attrs)
    return ds.assign(new).assign_attrs(latent_space=space)
