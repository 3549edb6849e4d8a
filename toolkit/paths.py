"""How clean and noise mix: x = alpha(sigma) x0 + sigma eps, with alpha = 1 (VE) or 1 - sigma (FLOW).

On both paths the probability-flow ODE is dx/dsigma = (x - x0)/sigma, so a solver written in sigma, x and x0
needs no twin for flow models; only what touches log-SNR or adds noise asks the path. Scalars in, scalars out;
arrays too.
"""

import math
from dataclasses import dataclass

import numpy as np

from .errors import bad


@dataclass(frozen=True)
class Path:
    """One of the two mixtures of signal and noise; use the values `VE` and `FLOW`.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.VE.alpha(7.0), tk.FLOW.alpha(0.25)
    (1.0, 0.75)
    """

    name: str

    def __repr__(self) -> str:
        return f"tk.{self.name}"

    def alpha(self, sigma):
        """Scale of the clean signal at `sigma` (scalar or array)."""
        return 1.0 - sigma if self.name == "FLOW" else 1.0 + 0.0 * sigma

    def rho(self, sigma: float) -> float:
        """sigma/alpha; infinite at FLOW's sigma 1."""
        alpha = self.alpha(sigma)
        return sigma / alpha if alpha > 0 else math.inf

    def half_log_snr(self, sigma: float) -> float:
        """lam = log(alpha/sigma): +inf at 0, -inf at FLOW's sigma 1."""
        rho = self.rho(sigma)
        return -math.log(rho) if 0 < rho < math.inf else (math.inf if rho == 0 else -math.inf)

    def from_half_log_snr(self, lam: float) -> float:
        """The sigma at half log-SNR `lam`: the inverse of `half_log_snr`."""
        return math.exp(-lam) if self.name == "VE" else 1.0 / (1.0 + math.exp(lam))

    def log_snr(self, sigma):
        """log(alpha^2/sigma^2), natural log, of an array: +inf at sigma 0, -inf where no signal is left."""
        sigma = np.asarray(sigma, np.float64)
        with np.errstate(divide="ignore"):
            return 2.0 * (np.log(np.maximum(self.alpha(sigma), 0.0)) - np.log(sigma))

    def mix(self, x0, eps, sigma: float):
        """The state at `sigma` of a clean x0 and unit noise eps."""
        return self.alpha(sigma) * x0 + sigma * eps

    @staticmethod
    def split(a: float, b: float, eta: float) -> tuple[float, float]:
        """(down, up) of an ancestral step a to b with down^2 + up^2 = b^2; a and b are sigmas, or rhos.

        up = min(b, eta b sqrt(a^2 - b^2)/a), and b for an infinite a. Raises ValueError for b > a, where up
        has no real value.
        """
        if b > a:
            why = "an ancestral step goes down in sigma: upwards its noise has no real variance"
            raise bad("sigmas", (a, b), why, 'tk.solver("euler")')
        if eta == 0 or b == 0:
            return b, 0.0
        up = b if math.isinf(a) else min(b, eta * b * math.sqrt(a * a - b * b) / a)
        # rounding makes the radicand -1e-17 where eta is large; its value there is 0
        return math.sqrt(max(b * b - up * up, 0.0)), up

    def ancestral(self, s: float, t: float, eta: float) -> tuple[float, float, float]:
        """(down, scale, up) of an ancestral step s to t: solve to `down`, then take scale*z + up*noise.

        VE: down = sqrt(t^2 - up^2), up = min(t, eta t sqrt(s^2 - t^2)/s). FLOW: down = t (1 + eta (t/s - 1)),
        then renoise. eta = 0 gives (t, 1, 0). Raises ValueError for t > s, where up has no real value.
        """
        if self.name == "VE" or eta == 0 or t == 0 or t > s:
            down, up = self.split(s, t, eta)
            return down, 1.0, up
        down = t * (1.0 + eta * (t / s - 1.0))
        scale = self.alpha(t) / self.alpha(down)
        return down, scale, math.sqrt(max(t * t - (down * scale) ** 2, 0.0))


VE = Path("VE")
FLOW = Path("FLOW")
