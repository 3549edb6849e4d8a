"""Keyed noise: a pure function of (seed, sample, rung, draw). No global generator, ever.

torch's CPU generator takes only 32 bits of a seed, so the key of a draw is ``(h + ((sample*4 + draw) << 16) +
rung) mod 2^32`` with h = the first 4 bytes of SHA-256 of the seed's decimal text: no two draws of a run of up
to 16,384 samples and 65,536 rungs share a key. Drawn on the CPU in float32 whatever the state's dtype or
device, then cast; it depends on no batch size, chunking, device or number of rungs.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch

from .errors import bad, unknown

SAMPLES, RUNGS, DRAWS = 16_384, 65_536, 4
START = 3  # draw 3 of rung 0 is the start noise of a run

COUPLINGS = ("independent", "shared")


def key(seed: int, sample: int, rung: int, draw: int = 0) -> int:
    """The 32-bit key of one draw of one sample at one rung."""
    h = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
    return (h + ((sample * DRAWS + draw) << 16) + rung) % 2**32


class Keyed:
    """The noise of a run: ``at(rung)`` is a fresh counter of draws: a step taken twice gets the same numbers.

    Parameters
    ----------
    seed : int
    shape : (sample, channel, y, x)
    dtype, device
        Of what is returned; the draw itself is float32 on the CPU.
    rungs : int
        How many rungs will be asked for, to refuse too many before the first one.

    Raises
    ------
    ValueError
        Beyond 16,384 samples, 65,536 rungs or 4 draws a rung, where keys would collide.
    """

    def __init__(self, seed: int, shape: Sequence[int], dtype: torch.dtype = torch.float64, device="cpu",
                 rungs: int = 1):  # fmt: skip
        if rungs > RUNGS:
            raise bad(
                "steps",
                rungs,
                f"at most {RUNGS} rungs in a run that draws noise: keys would repeat",
                "steps=65535",
            )
        if shape[0] > SAMPLES:
            raise bad(
                "samples",
                shape[0],
                f"at most {SAMPLES} in a run: keys of noise would repeat",
                "latent[:16384]",
            )
        self.seed, self.shape, self.dtype, self.device = seed, tuple(shape), dtype, device
        self._generator = torch.Generator("cpu")

    def draw(self, rung: int, draw: int = 0) -> torch.Tensor:
        """Unit noise of one rung, (sample, channel, y, x)."""
        if rung >= RUNGS or draw >= DRAWS:
            raise bad(
                "rung",
                (rung, draw),
                f"below {RUNGS} and draw below {DRAWS}: keys would repeat",
                "steps=65535",
            )
        out = torch.empty(self.shape, dtype=torch.float32)
        for sample in range(self.shape[0]):
            self._generator.manual_seed(key(self.seed, sample, rung, draw))
            torch.randn(self.shape[1:], generator=self._generator, out=out[sample])
        return out.to(dtype=self.dtype, device=self.device)

    def start(self) -> torch.Tensor:
        """The start noise of the run."""
        return self.draw(0, START)

    def at(self, rung: int) -> Callable[[float, float], torch.Tensor]:
        """Draws of one rung in the order asked, as a function (sigma, sigma_next) -> unit noise."""
        count = 0

        def draw(sigma: float, sigma_next: float) -> torch.Tensor:
            nonlocal count
            count += 1
            return self.draw(rung, count - 1)

        return draw


class Plain:
    """A function (sigma, sigma_next) -> unit noise, answering in the order in which it is called."""

    def __init__(self, draw: Callable[[float, float], torch.Tensor] | None):
        self._draw = draw if draw is not None else _none

    def at(self, rung: int) -> Callable[[float, float], torch.Tensor]:
        return self._draw


def _none(sigma: float, sigma_next: float) -> torch.Tensor:
    raise bad(
        "noise",
        None,
        "this solver draws noise",
        "tk.steps(model, solver, x, sigmas, noise=lambda s, t: torch.randn_like(x))",
    )


def bound(noise):
    """`noise` as the loop wants it: with ``at(rung)``. None, a function, or something that has it already."""
    return noise if hasattr(noise, "at") else Plain(noise)


def coupled(coupling: str, noise: Keyed, rung: int) -> torch.Tensor:
    """Unit noise of a ladder's rung: its own draw (independent), or the start noise at every rung (shared).

    Raises ValueError for an unknown coupling.
    """
    if coupling not in COUPLINGS:
        raise unknown("coupling", coupling, COUPLINGS, 'tk.ladder(model, latent, coupling="{}")')
    return noise.draw(rung) if coupling == "independent" else noise.start()
