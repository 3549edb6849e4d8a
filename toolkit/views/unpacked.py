"""The payload of a view read back: numbers and codes of any rung, in the colours that the browser shows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .paper import tokens

COLUMNS = ("sigma", "timestep", "log_snr", "nfe")


def rgb(colour: Any) -> tuple[int, int, int]:
    """A token as it looks on the paper: 0 to 255, what is translucent mixed with white."""
    if isinstance(colour, str):
        return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
    *channels, alpha = colour
    return tuple(round(255 * (alpha * c + 1 - alpha)) for c in channels)


def lut(given: bytes = b"") -> np.ndarray:
    """256 colours, (256, 3): those given as r g b, else between the stops of our own diverging map."""
    if len(given) == 768:
        return np.frombuffer(given, np.uint8).reshape(256, 3)
    stops = np.array([rgb(stop) for stop in tokens()["diverging"]], np.float64)
    at = np.linspace(0, len(stops) - 1, 256)
    mixed = [np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)]
    return np.floor(np.stack(mixed, -1) + 0.5).astype(np.uint8)


class Run:
    """What a view of rungs holds: its meta by attribute, codes (R, S, C, H, W), tables (R, S, C) by name."""

    def __init__(self, meta: Mapping[str, Any], latent: bytes, denoised: bytes, floats: bytes):
        self.meta, shape = meta, tuple(meta["shape"])
        self.R, self.S, self.C, self.H, self.W = shape
        codes = {"latent": latent, "denoised": denoised}
        self.codes = {n: np.frombuffer(b, np.uint8).reshape(shape) for n, b in codes.items() if b}
        values, start, self.table = np.frombuffer(floats, "<f4").astype(np.float64), 0, {}
        for name, size in meta["floats"]:
            part = values[start : start + size]
            self.table[name] = part.reshape(shape[: 2 if name.endswith("limit") else 3])
            start += size
        self.columns = {n: np.array([float(v) for v in meta[n]]) for n in COLUMNS if meta[n] is not None}
        self.rungs, self.sigma = np.array(meta["rungs"]), self.columns["sigma"]
        self.names = [meta["channels"][c] if meta["channels"] else f"c{c}" for c in range(self.C)]

    def colours(self, plane: np.ndarray, ends: tuple[float, float], limit: float, table: np.ndarray):
        """Codes (y, x) that stand for lo to hi, in colour on the scale -limit to limit: (y, x, 3), and where
        they are not finite."""  # fmt: skip
        (lo, hi), top = ends, self.meta["top"]
        unit = np.nan_to_num(
            ((lo + np.arange(256) * (hi - lo) / top) / limit + 1) / 2
        )  # all of it NaN: hatched
        places = np.clip(np.floor(unit * 255 + 0.5), 0, 255).astype(np.uint8)  # rounds as JavaScript does
        return table[places][plane], plane > top

    def fault(self, k: int, s: int) -> tuple[int, int] | None:
        """Counts of NaN and Inf in the latent of a rung; None where all is finite."""
        return next(((nan, inf) for i, j, nan, inf in self.meta["faults"] if (i, j) == (k, s)), None)
