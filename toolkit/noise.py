"""Keyed noise: a pure function of (seed, sample, rung, draw). No global generator, ever.

torch's CPU generator takes only 32 bits of a seed, so the key of a draw is ``(h + ((sample*4 + draw) << 16) +
rung) mod 2^32`` with h = the first 4 bytes of SHA-256 of the seed's decimal text: no two draws of a run of up
to 16,384 samples and 65,536 rungs share a key. Drawn on the CPU in float32 whatever the state's dtype or
device, then cast; it depends on no batch size, chunking, device or number of rungs.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from .errors import bad
from .later import sent

SAMPLES, RUNGS, DRAWS = 16_384, 65_536, 4
START = 3  # draw 3 of rung 0 is the start noise of a run

COUPLINGS = ("independent", "shared", "markov")


@lru_cache(maxsize=64)
def _root(seed: int) -> int:
    """The first 4 bytes of SHA-256 of the seed's decimal text."""
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")


def key(seed: int, sample: int, rung: int, draw: int = 0) -> int:
    """The 32-bit key of one draw of one sample at one rung."""
    return (_root(seed) + ((sample * DRAWS + draw) << 16) + rung) % 2**32


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
        out = self.fill(torch.empty(self.shape, dtype=torch.float32), rung, draw=draw)
        return sent(out, self.device).to(self.dtype)

    def fill(self, out: torch.Tensor, rung: int, sigma: float = 1.0, draw: int = 0) -> torch.Tensor:
        """`sigma` times that noise, into `out` on the CPU; in float32 it is drawn there, at that scale."""
        if out.dtype != torch.float32:
            drawn = self.fill(torch.empty(self.shape, dtype=torch.float32), rung, draw=draw)
            return out.copy_(drawn).mul_(sigma)
        for sample, one in enumerate(out.unbind() if len(out) > 1 else (out,)):
            self._generator.manual_seed(key(self.seed, sample, rung, draw))
            one.normal_(0.0, sigma, generator=self._generator)
        return out

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


class Rungs:
    """Unit noise of a ladder's rungs, drawn into what is handed in, on the CPU.

    independent: each rung its own draw. shared: the start noise of the run at all. markov: what is there at a
    rung stays, and fresh noise comes on top, as the forward process has it,

        n_k = (rho_{k-1} n_{k-1} + sqrt(rho_k^2 - rho_{k-1}^2) z_k)/rho_k,   rho = sigma/alpha

    so that corr(n_j, n_k) = rho_j/rho_k, j < k, through all rungs below k, those that are not kept too.

    Parameters
    ----------
    coupling : one of `COUPLINGS`
    noise : Keyed
    rhos : sequence of float
        sigma/alpha of every rung of the schedule, rising from the clean end.
    """

    def __init__(self, coupling: str, noise: Keyed, rhos: Sequence[float]):
        self.noise, self.rhos = noise, rhos
        self._fill = {"independent": noise.fill, "shared": self._one, "markov": self._chain}[coupling]
        self._rung, self._unit = -1, None  # the newest of a Markov chain, float64: 10,000 roundings add up
        self._drawn = torch.empty(noise.shape, dtype=torch.float32)

    def fill(self, out: torch.Tensor, rung: int, sigma: float = 1.0) -> None:
        """`sigma` times the noise of one rung, into `out` (sample, channel, y, x)."""
        self._fill(out, rung, sigma)

    def _one(self, out: torch.Tensor, rung: int, sigma: float) -> None:
        if self._unit is None:
            self._unit = self.noise.start().to(dtype=torch.float32, device="cpu")
        out.copy_(self._unit).mul_(sigma)

    def _chain(self, out: torch.Tensor, rung: int, sigma: float) -> None:
        if rung < self._rung:  # from the beginning
            self._rung, self._unit = -1, None
        for k in range(self._rung + 1, rung + 1):
            self._climb(k)
        self._rung = rung
        out.copy_(self._unit).mul_(sigma)

    def _climb(self, k: int) -> None:
        """The chain from rung k - 1 to rung k."""
        fresh = self.noise.fill(self._drawn, k).double()
        if self._unit is None:
            self._unit = fresh
            return
        low, high = self.rhos[k - 1], self.rhos[k]
        # equal levels share their noise; where nothing of the signal is left (infinite), nothing of it stays
        kept = 1.0 if low == high else 0.0 if math.isinf(high) else low / high
        self._unit.mul_(kept).add_(fresh, alpha=math.sqrt(1.0 - kept * kept))
