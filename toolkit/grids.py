"""The grids of levels: each schedule is a function (levels, steps, **options) -> falling float32 levels to 0.

The first nine are ComfyUI's, with its numbers. All is float64 and rounded once, save where ComfyUI's float32
shows at zero terminal SNR: there the table doubles in its last step, and the arctangent of 4,519 is within
3e-4 of its pole. In the formulas n is `steps`, i = 0..n-1, T the table of the levels, M its length, and max
and min its ends. No torch here.
"""

import math
from typing import Any

import numpy as np

from .errors import bad, unknown
from .levels import TRAIN_STEPS, Levels, number
from .paths import FLOW, VE, Path

KARRAS_RHO = 7.0  # 2206.00364, table 1
BETA_SHAPE = 0.6  # both shape parameters of the Beta distribution, 2407.12173
BETA57_SHAPE = (0.5, 0.7)
LARGEST_SHAPE = 1000.0  # beyond, all quantiles fall on a few entries of any table
LARGEST_RHO = 1000.0  # beyond, karras is `exponential` but for rounding, and polyexponential min alone
LINEAR_PART = 0.025  # noise removed by the linear half of linear_quadratic (Mochi's threshold)
CLOSE_TO_ZERO = 1e-5  # a lowest level below this counts as the final 0 in `normal`
COSINE_OFFSET = 0.008  # 2102.09672, eq. 17: s, which keeps the first betas from being too small
LAPLACE_FLOOR = 1e-5  # ComfyUI's: keeps the logarithm off 0 at both ends
# image tokens, and mu there, between which Flux's shift is linear (black-forest-labs/flux)
FEW_TOKENS, MANY_TOKENS = (256, 0.5), (4096, 1.15)
SD3_SHIFT = 3.0  # 2403.03206, section 5.3.2
SHIFTS = ("exponential", "linear")
BONG_MIDDLE, BONG_SLOPE, BONG_STEPS = 0.5, 0.2, 40  # the level where the ramps meet; slope 0.2 at 40 points
BELOW_TOP = 1e-6  # relative: a published end counts as reached where float32 is what keeps it from being so

# Align your steps, 2404.14507: ten steps, as ComfyUI has them (AlignYourStepsScheduler)
AYS_SD1 = (14.6146, 6.4746, 3.8637, 2.6946, 1.8842, 1.3944, 0.9643, 0.6524, 0.3977, 0.1515, 0.0292)
AYS_SDXL = (14.6146, 6.3184, 3.7682, 2.1812, 1.3405, 0.8621, 0.5551, 0.3799, 0.2332, 0.1114, 0.0292)
AYS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
# the same as diffusers has them (AysSchedules): entries of a table of 1,000, here with the lowest one, 0
AYS_SD1_TIMESTEPS = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)
AYS_SDXL_TIMESTEPS = (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0)
# Optimal steps, 2503.21774: Flux in ten steps, as ComfyUI has them (OptimalStepsScheduler)
OSS_FLUX = (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001)


def grid(sigmas: Any, rising: bool, path: Path) -> list[float]:
    """A user's own levels as floats: monotone, finite, none negative, on FLOW at most 1.

    Raises ValueError or TypeError for anything else; levels in the wrong direction get the line that turns
    them round.
    """
    line = "sigmas=[0.0, 0.03, 1.0, 14.6]" if rising else "sigmas=[14.6, 1.0, 0.03, 0.0]"
    turned = "sigmas=sigmas[::-1]"
    if hasattr(sigmas, "detach"):  # a tensor, which has no negative strides
        sigmas, turned = sigmas.detach().cpu(), "sigmas=sigmas.flip(0)"
    sigmas = sigmas.values if hasattr(sigmas, "dims") and hasattr(sigmas, "dtype") else sigmas
    try:
        levels = np.asarray(sigmas)
    except (TypeError, ValueError):
        levels = np.empty(0, dtype=object)
    if levels.dtype.kind not in "iuf":
        raise bad("sigmas", sigmas, "a list of numbers", line, TypeError)
    levels = levels.astype(np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not np.isfinite(levels).all() or levels.min() < 0:
        raise bad("sigmas", sigmas, "two or more finite levels, none negative, in one dimension", line)
    hops = np.diff(levels) if rising else -np.diff(levels)
    if hops.min() < 0 or np.sum(levels == 0) > 1 or levels.max() == 0:
        line = turned if hops.min() < 0 and hops.max() <= 0 else line
        raise bad("sigmas", sigmas, f"{'rising' if rising else 'falling'}, with at most one 0", line)
    if path.name == "FLOW" and levels.max() > 1:
        line = "sigmas=[0.0, 0.1, 0.5, 1.0]" if rising else "sigmas=[1.0, 0.5, 0.1, 0.0]"
        raise bad("sigmas", sigmas, "a flow model has no level above 1, where alpha is 0", line)
    return levels.tolist()


def _to_zero(levels: np.ndarray) -> np.ndarray:
    """With the final 0, in float32."""
    return np.append(levels, 0.0).astype(np.float32)


def _first_of_equals(values: np.ndarray) -> np.ndarray:
    """True where a value differs from the one before it."""
    return np.insert(np.diff(values) != 0, 0, True)


def normal(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in the model's clock: sigma(linspace(time(max), time(min), n)), then 0.

    Where the lowest of them is 0 already (1e-5 or less), n + 1 points and no 0 appended. ComfyUI.
    """
    start, end = levels.time(levels.sigma_max), levels.time(levels.sigma_min)
    if levels.sigma(end) <= CLOSE_TO_ZERO:
        return levels.sigma(np.linspace(start, end, steps + 1, dtype=np.float32)).astype(np.float32)
    return _to_zero(levels.sigma(np.linspace(start, end, steps, dtype=np.float32)))


def karras(levels: Levels, steps: int, rho: float = KARRAS_RHO) -> np.ndarray:
    """Uniform in sigma^(1/rho), rho 7: (max^(1/rho) + i/(n-1) (min^(1/rho) - max^(1/rho)))^rho, then 0.

    2206.00364, eq. 5. A larger `rho`, above 0, puts more of the levels near 0; 1 is uniform in sigma.
    """
    rho = number("rho", rho, 0.0, 'tk.schedule(levels, "karras", rho=7.0)', high=LARGEST_RHO)
    low, high = levels.sigma_min ** (1 / rho), levels.sigma_max ** (1 / rho)
    return _to_zero((high + np.linspace(0.0, 1.0, steps) * (low - high)) ** rho)


def exponential(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in log sigma: exp(linspace(log max, log min, n)), then 0. k-diffusion."""
    return _to_zero(np.exp(np.linspace(math.log(levels.sigma_max), math.log(levels.sigma_min), steps)))


def sgm_uniform(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in the clock, the lowest left out: sigma(linspace(time(max), time(min), n + 1)[:-1]), then 0.

    Stability's generative-models; ComfyUI.
    """
    start, end = levels.time(levels.sigma_max), levels.time(levels.sigma_min)
    return _to_zero(levels.sigma(np.linspace(start, end, steps + 1, dtype=np.float32)[:-1]))


def simple(levels: Levels, steps: int) -> np.ndarray:
    """Every so many entries of the table, from the top: T[-(1 + int(i M/n))], then 0. ComfyUI.

    Repeats levels where more steps are asked than the table has.
    """
    table = levels.table
    return _to_zero(table[[-(1 + int(i * (len(table) / steps))) for i in range(steps)]])


def ddim_uniform(levels: Levels, steps: int) -> np.ndarray:
    """Every k-th entry of the table, from the second: T[1::max(M // n, 1)] reversed, then 0. 2010.02502.

    Returns more or fewer levels than asked wherever n does not divide M.
    """
    return _to_zero(levels.table[1 :: max(len(levels.table) // steps, 1)][::-1])


def beta(levels: Levels, steps: int, alpha: float = BETA_SHAPE, beta: float = BETA_SHAPE) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6): T[rint(ppf(1 - i/n) (M - 1))], repeats removed, then 0. 2407.12173.

    `alpha` and `beta`, both above 0, are the shape of the distribution: the smaller `alpha`, the more levels
    at the clean end, and the smaller `beta`, the more at the noisy end. Returns fewer levels than asked where
    several quantiles fall on one entry.
    """
    from scipy.special import betaincinv  # the ppf, without the second it takes to import scipy.stats

    line = 'tk.schedule(levels, "beta", alpha=0.6, beta=0.6)'
    alpha = number("alpha", alpha, 0.0, line, high=LARGEST_SHAPE)
    beta = number("beta", beta, 0.0, line, high=LARGEST_SHAPE)
    share = betaincinv(alpha, beta, 1.0 - np.linspace(0.0, 1.0, steps, endpoint=False))
    index = np.rint(share * (len(levels.table) - 1)).astype(int)
    return _to_zero(levels.table[index[_first_of_equals(index)]])


def beta57(levels: Levels, steps: int) -> np.ndarray:
    """Quantiles of Beta(0.5, 0.7): `beta` with alpha 0.5 and beta 0.7. RES4LYF's choice of the two.

    Somewhat more levels at the clean end than `beta`, and fewer at the noisy one.
    """
    return beta(levels, steps, *BETA57_SHAPE)


def linear_quadratic(levels: Levels, steps: int) -> np.ndarray:
    """Linear through the first 2.5 % of the noise in n // 2 steps, then quadratic: (1 - y) max. Mochi.

    With m = n // 2, q = n - m, gap = m - 0.025 n: y_i = 0.025 i/m for i < m; from m on
    gap/(m q^2) (i^2 + m^2) + (0.025/m - 2 gap/q^2) i; y_n = 1. One step: max, 0.
    """
    if steps == 1:
        return _to_zero(np.array([levels.sigma_max]))
    m = steps // 2
    q, gap = steps - m, m - LINEAR_PART * steps
    i = np.arange(steps, dtype=np.float64)
    curve = gap / (m * q * q) * (i * i + m * m) + (LINEAR_PART / m - 2.0 * gap / (q * q)) * i
    return _to_zero((1.0 - np.where(i < m, LINEAR_PART * i / m, curve)) * levels.sigma_max)


def kl_optimal(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in arctan sigma: tan(x atan(min) + (1 - x) atan(max)) with x = i/(n - 1), then 0.

    2404.14507 (the schedule that is optimal there for Gaussian data, under KL divergence).
    """
    if steps == 1:
        wanted = "two or more with kl_optimal, whose formula divides by steps - 1"
        raise bad("steps", steps, wanted, 'tk.schedule(levels, "kl_optimal", steps=2)')
    x = np.linspace(0.0, 1.0, steps, dtype=np.float32)
    low, high = np.float32(math.atan(levels.sigma_min)), np.float32(math.atan(levels.sigma_max))
    return _to_zero(np.tan(x * low + (np.float32(1.0) - x) * high))


# --- beyond ComfyUI's nine: k-diffusion's, and noise schedules of papers ----


def polyexponential(levels: Levels, steps: int, rho: float = 1.0) -> np.ndarray:
    """exp of a power: exp(log min + (1 - i/(n-1))^rho (log max - log min)), then 0. k-diffusion.

    rho 1 is `exponential`; a larger one puts more of the levels near min.
    """
    rho = number("rho", rho, 0.0, 'tk.schedule(levels, "polyexponential", rho=1.0)', high=LARGEST_RHO)
    low, high = math.log(levels.sigma_min), math.log(levels.sigma_max)
    return _to_zero(np.exp(low + np.linspace(1.0, 0.0, steps) ** rho * (high - low)))


def vp(
    levels: Levels, steps: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3
) -> np.ndarray:
    """Uniform in the time of the VP SDE: sqrt(exp(beta_d t^2/2 + beta_min t) - 1), t from 1 to eps_s, then 0.

    2011.13456, in the form of 2206.00364, table 1; k-diffusion's numbers where the levels reach as far, which
    is from 152.2 to 0.0105 as it stands. Where they do not, t starts or ends where sigma is max or min: all
    levels are inside, and none repeats. VE only. `beta_d` and `beta_min` are above 0, `eps_s` in (0, 1).
    """
    _only(VE, levels, "vp")
    line = 'tk.schedule(levels, "vp", beta_d=19.9, beta_min=0.1, eps_s=1e-3)'
    slope, start = number("beta_d", beta_d, 0.0, line), number("beta_min", beta_min, 0.0, line)
    last = number("eps_s", eps_s, 0.0, line, high=1.0)

    def time(sigma: float) -> float:
        """The root of slope t^2/2 + start t = log(1 + sigma^2)."""
        return (math.sqrt(start**2 + 2.0 * slope * math.log1p(sigma**2)) - start) / slope

    top, bottom = min(1.0, time(levels.sigma_max)), max(last, time(levels.sigma_min))
    if top <= bottom:
        options = {"beta_d": beta_d, "beta_min": beta_min, "eps_s": eps_s}
        raise bad("schedule", "vp", f"with {options} there is no time at which sigma is a level", line)
    t = np.linspace(top, bottom, steps)
    sigma = np.sqrt(np.expm1(slope * t**2 / 2.0 + start * t))
    return _to_zero(np.clip(sigma, levels.sigma_min, levels.sigma_max))  # clips rounding, no more


def _clamped(levels: Levels, sigma: np.ndarray) -> np.ndarray:
    """`sigma` held between min and max, once at each, then 0."""
    inside = np.clip(sigma, levels.sigma_min, levels.sigma_max)
    return _to_zero(inside[_first_of_equals(inside)])


def cosine(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in the time of abar = cos^2((t + 0.008)/1.008 pi/2), t = 1 - i/(n-1): sqrt(1/abar - 1), then 0.

    Improved DDPM, 2102.09672, eq. 17, without its division by abar(0) = 0.99984. The formula runs from
    infinity to 0.0125: what is beyond max or min is clamped to it and kept once, so that there are fewer
    levels than asked where several are. VE only.
    """
    _only(VE, levels, "cosine")
    angle = (np.linspace(1.0, 0.0, steps) + COSINE_OFFSET) / (1.0 + COSINE_OFFSET) * (np.pi / 2.0)
    return _clamped(levels, np.tan(angle))  # sqrt(1/cos^2 - 1)


def laplace(levels: Levels, steps: int, mu: float = 0.0, beta: float = 0.5) -> np.ndarray:
    """Quantiles of a Laplace law of log sigma: exp(mu - beta sgn(1/2 - x) ln(1 - 2|1/2 - x| + 1e-5)), then 0.

    x = i/(n-1). 2407.03297, as ComfyUI has it. What is beyond max or min is clamped to it and kept once, so
    that there are fewer levels than asked where several are (with the defaults on Stable Diffusion's levels,
    above 429 steps). VE only. `mu` is where the levels are densest, `beta`, above 0, how far they spread.
    """
    _only(VE, levels, "laplace")
    line = 'tk.schedule(levels, "laplace", mu=0.0, beta=0.5)'
    mu, beta = number("mu", mu, -math.inf, line), number("beta", beta, 0.0, line)
    half = 0.5 - np.linspace(0.0, 1.0, steps)
    log_sigma = mu - beta * np.sign(half) * np.log(1.0 - 2.0 * np.abs(half) + LAPLACE_FLOOR)
    return _clamped(levels, np.exp(log_sigma))


# --- published tables ----


def _only(path: Path, levels: Levels, name: str) -> None:
    """Raises unless the levels are those of `path`."""
    if levels.path.name != path.name:
        whose, right = ("flow models", "flow()") if path == FLOW else ("VE models", "scaled_linear()")
        why = f"a schedule of {whose}, and {levels!r} is on {levels.path.name}"
        raise bad("schedule", name, why, f'tk.schedule(tk.Levels.{right}, "{name}"), or schedule="karras"')


def _log_linear(table: Any, steps: int) -> np.ndarray:
    """A table of falling levels at steps + 1 places, linear in log sigma; the last is 0."""
    places = np.linspace(0.0, len(table) - 1.0, steps + 1)
    return _to_zero(np.exp(np.interp(places, np.arange(len(table)), np.log(table)))[:-1])


def _align(levels: Levels, steps: int, name: str, table: tuple[float, ...], right: str) -> np.ndarray:
    """A table of VE levels by `name`; raises where the levels do not reach as far, and says which do."""
    _only(VE, levels, name)
    high, low = table[0], table[-1]
    if levels.sigma_max < high * (1.0 - BELOW_TOP) or levels.sigma_min > low * (1.0 + BELOW_TOP):
        reach = f"{levels!r} reaches from {levels.sigma_max:.4g} to {levels.sigma_min:.4g}"
        why = f"its table runs from {high:g} to {low:g}, and {reach}"
        raise bad("schedule", name, why, f'tk.schedule(tk.Levels.{right}, "{name}"), or schedule="karras"')
    return _log_linear(table, steps)


def ays_sd1(levels: Levels, steps: int) -> np.ndarray:
    """Align your steps for Stable Diffusion 1: NVIDIA's table, 2404.14507, as ComfyUI has it; then 0.

    Ten steps are the table, 14.6146 to 0.1515 (its last level, 0.0292, gives way to 0); other numbers are its
    log-linear interpolation, as the authors say. Needs VE levels that reach from 14.6146 to 0.0292.
    """
    return _align(levels, steps, "ays_sd1", AYS_SD1, "scaled_linear()")


def ays_sdxl(levels: Levels, steps: int) -> np.ndarray:
    """Align your steps for Stable Diffusion XL: NVIDIA's table, 2404.14507, as ComfyUI has it; then 0.

    As `ays_sd1`, with 14.6146 to 0.1114.
    """
    return _align(levels, steps, "ays_sdxl", AYS_SDXL, "scaled_linear()")


def ays_svd(levels: Levels, steps: int) -> np.ndarray:
    """Align your steps for Stable Video Diffusion: NVIDIA's table, 2404.14507, as ComfyUI has it; then 0.

    As `ays_sd1`, with 700 to 0.034. Needs levels from 700 to 0.002: ``tk.Levels.edm(0.002, 700.0)``.
    """
    return _align(levels, steps, "ays_svd", AYS_SVD, "edm(0.002, 700.0)")


def _by_timesteps(levels: Levels, steps: int, name: str, table: tuple[int, ...]) -> np.ndarray:
    """A table of entries of 1,000 levels; raises for levels of another clock."""
    _only(VE, levels, name)
    top = levels.time(levels.sigma_max)
    if top != TRAIN_STEPS - 1:
        why = f"its table is in timesteps from 999 to 0, and the clock of {levels!r} starts at {top:.4g}"
        line = f'tk.schedule(tk.Levels.scaled_linear(), "{name}"), or schedule="ays_sd1"'
        raise bad("schedule", name, why, line)
    return _log_linear(levels.sigma(np.array(table)), steps)


def ays_sd1_diffusers(levels: Levels, steps: int) -> np.ndarray:
    """Align your steps for Stable Diffusion 1 in timesteps: NVIDIA's table as diffusers has it; then 0.

    sigma(t) of t = 999, 850, ... 24 by the levels' own clock: on Stable Diffusion's levels that is `ays_sd1`,
    to its four digits; on others of 1,000 training steps, which it needs, not. Ten steps are the table; other
    numbers are log-linear in between, with 0 for the eleventh timestep. 2404.14507.
    """
    return _by_timesteps(levels, steps, "ays_sd1_diffusers", AYS_SD1_TIMESTEPS)


def ays_sdxl_diffusers(levels: Levels, steps: int) -> np.ndarray:
    """Align your steps for Stable Diffusion XL in timesteps: NVIDIA's table as diffusers has it; then 0.

    As `ays_sd1_diffusers`, with t = 999, 845, ... 13.
    """
    return _by_timesteps(levels, steps, "ays_sdxl_diffusers", AYS_SDXL_TIMESTEPS)


# --- for flow models alone ----


def oss(levels: Levels, steps: int) -> np.ndarray:
    """Optimal steps for Flux: the table of 2503.21774 as ComfyUI has it, 0.9968 to 0.2808; then 0. FLOW only.

    Ten steps are the table (its last level, 0.001, gives way to 0); other numbers are its log-linear
    interpolation. It takes no notice of the levels' own shift.
    """
    _only(FLOW, levels, "oss")
    return _log_linear(OSS_FLUX, steps)


def bong_tangent(levels: Levels, steps: int) -> np.ndarray:
    """Two arctangent ramps, from 1 to 1/2 and from 1/2 to 0, each flat at its own end. FLOW only.

    Of N = n + 2 points j = 0..N-1, m = floor(0.6 N) is where the ramps meet. With f(j) = arctan((m - j) k),
    k = 0.2/(N/40), the first is 1/2 + 1/2 (f(j) - f(m-1))/(f(0) - f(m-1)) over j < m, the second
    1/2 (f(j) - f(N-1))/(f(m) - f(N-1)) from m on; 1/2, the end of one and the start of the other, is taken
    once. After RES4LYF's schedule of this name, from its parameters and its ten-step values. Two or more.
    """
    _only(FLOW, levels, "bong_tangent")
    if steps == 1:
        wanted = "two or more with bong_tangent, whose two ramps meet at a level between 1 and 0"
        raise bad("steps", steps, wanted, 'tk.schedule(levels, "bong_tangent", steps=2)')
    count = steps + 2
    middle = 3 * count // 5
    curve = np.arctan((middle - np.arange(count)) * (BONG_SLOPE * BONG_STEPS / count))
    upper, lower = curve[: middle - 1], curve[middle:]  # the upper one without its last, which is 1/2
    end = curve[middle - 1]
    upper = BONG_MIDDLE + (1.0 - BONG_MIDDLE) * (upper - end) / (curve[0] - end)
    lower = BONG_MIDDLE * (lower - curve[-1]) / (lower[0] - curve[-1])
    return np.concatenate([upper, lower]).astype(np.float32)


def dynamic_shift(
    levels: Levels,
    steps: int,
    tokens: int = MANY_TOKENS[0],
    kind: str = "exponential",
    shift: float | None = None,
    terminal: float | None = None,
) -> np.ndarray:
    """Flow levels shifted by the size of the image: S t/(1 + (S - 1) t), t = 1 - i/n, then 0. FLOW only.

    kind "exponential": S = e^mu, that is e^mu/(e^mu + 1/t - 1), with mu linear in the number of image
    `tokens`, 0.5 at 256 and 1.15 at 4096 (Flux), or mu = `shift` where that is given. kind "linear":
    S = `shift`, 3 where None (SD3, 2403.03206), and `tokens` does not matter. `terminal`, in (0, 1):
    stretched so that the last level before 0 is `terminal`, 1 - (1 - sigma)(1 - terminal)/(1 - last), as LTX
    has it, with 0.1. The levels' own shift does not come into it; diffusers' FlowMatchEulerDiscreteScheduler.
    """
    _only(FLOW, levels, "dynamic_shift")
    line = 'tk.schedule(levels, "dynamic_shift", tokens=4096)'
    if isinstance(tokens, bool) or not isinstance(tokens, (int, np.integer)) or tokens < 1:
        raise bad("tokens", tokens, "a whole number of image tokens, 1 or more", line)
    if kind not in SHIFTS:
        raise unknown("kind", kind, SHIFTS, 'tk.schedule(levels, "dynamic_shift", kind="{}")')
    if kind == "linear":
        scale = number("shift", SD3_SHIFT if shift is None else shift, 0.0, f"{line[:-1]}, shift=3.0)")
    else:
        (few, low), (many, high) = FEW_TOKENS, MANY_TOKENS
        mu = low + (high - low) / (many - few) * (tokens - few) if shift is None else shift
        scale = np.exp(number("shift", mu, -math.inf, f"{line[:-1]}, shift=1.15)"))
    t = np.linspace(1.0, 1.0 / steps, steps)
    sigma = scale * t / (1.0 + (scale - 1.0) * t)
    if terminal is not None:
        line = 'tk.schedule(levels, "dynamic_shift", steps=2, terminal=0.1)'
        last = number("terminal", terminal, 0.0, line, high=1.0)
        if last == 1.0:
            raise bad("terminal", terminal, "below 1, which is the first level", line)
        if steps == 1:
            wanted = "two or more with `terminal`: the first level is 1, and the last before 0 is `terminal`"
            raise bad("steps", steps, wanted, line)
        sigma = 1.0 - (1.0 - sigma) * (1.0 - last) / (1.0 - sigma[-1])
    return _to_zero(sigma)
