"""Regions on the canvas of one run: their masks fitted, and who has which weight at a level of noise."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from .dataset import attributes
from .errors import bad
from .later import sent
from .masks import NEAR, joined, joining
from .noise import Keyed
from .regions import BASE, LINE, Region, fitted, named

LEFT = 1e-6  # a base that is left with less has nothing: masks that add up to 1 do so to rounding, in float32
WHOLLY = 0.95  # share from which a pixel counts as a region's own: the tails of a feathered edge are long
ALIKE = 1e-6  # sine of the angle between two noises below which they have one direction
KEPT = 8  # sets of weights that are kept: a schedule of weights has a new one at every level
ROWED = ("conflict", "seam_gradient")  # what a run with regions records at every row
GRID = "grid"  # attribute: the levels by which strength and differential masks say when, falling
MOST = 1e100  # of a weight: sums of a few stay finite


class Weights(NamedTuple):
    """Who has how much at one level.

    Attributes
    ----------
    w : Tensor (region, sample, 1, y, x)
        The base first; sums to 1 over the regions. One sample where all share their masks.
    asked : Tensor (region, sample, 1, y, x)
        The same among those that are asked, as if nothing was kept.
    present : tuple of int
        Those with weight in `asked`.
    kept : Tensor (sample, 1, y, x), or None
        The share of what is kept.
    areas : Tensor (present, sample, y, x)
        The mean over the pixels where each of those has weight, as the weight of every pixel.
    seams : Tensor (sample, neighbours, 2), or None
        The means over neighbours, across and then down, which are not both of one region, almost wholly; and
        over all others. None where there is but one region.
    """

    w: torch.Tensor
    asked: torch.Tensor
    present: tuple[int, ...]
    kept: torch.Tensor | None
    areas: torch.Tensor
    seams: torch.Tensor | None


class Layout:
    """The regions of a run: masks over max(their sum, 1), and the base has what is left of 1.

    Parameters
    ----------
    regions : list of Region, named
    masks : Tensor (region, sample, 1, y, x)
        Fitted, on the host; one sample where all share theirs.
    device : where the run is
        Weights are made on the host and sent there: their making asks which of them are zero.
    active : list of (high, low)
        The range of sigma in which each is active.
    levels : sequence of float
        Those asked for, falling, by which strength and differential masks say when.
    """

    def __init__(self, regions: Sequence[Region], masks: torch.Tensor, device: Any,
                 active: Sequence[tuple[float, float]], levels: Sequence[float]):  # fmt: skip
        self.regions, self.masks, self.device, self.active = list(regions), masks, device, list(active)
        self.names, self.levels = [BASE, *(r.name for r in self.regions)], list(levels)
        self.keeps = any(r.keep for r in self.regions)
        self.differential = any(r.differential for r in self.regions)
        # a mask of what is kept says the contrary: its grey is let go when that of its complement joins
        self._since = [joining(1.0 - m if r.keep else m, self.levels) if r.differential else None
                       for r, m in zip(self.regions, masks, strict=True)]  # fmt: skip
        self._known: dict[tuple, Weights] = {}

    @classmethod
    def fit(cls, regions: Any, shape: Sequence[int], device: Any, levels: Sequence[float]) -> "Layout":
        """Regions on latents of `shape`, for a run over falling `levels`."""
        regions = named(regions)
        shared = all(r.mask.ndim == 2 or len(r.mask) == 1 for r in regions)
        samples = 1 if shared else shape[0]
        masks = torch.stack([fitted(r, shape, samples) for r in regions])
        made = cls(regions, masks, device, [_active(r, levels) for r in regions], levels)
        # a schedule of weights that goes wrong does so before the first call
        factors = [made.factors(level) for level in levels]
        made.warn_of_idle(factors[:-1])
        if made.keeps and all(bool((made.at(s).kept >= 1.0 - LEFT).all()) for s in levels[:-1]):
            line = f"regions=[{LINE}, tk.Region(mask, keep=True)]"
            raise bad("regions", made.names[1:], "all of the picture is kept: nothing would be sampled", line)
        return made

    @classmethod
    def read(cls, ds: xr.Dataset, device: Any) -> "Layout":
        """The regions of the record of an unsample."""
        line = "tk.sample(model, start=run, regions=regions)"
        facts = ds.attrs["regions"]
        if "region_mask" not in ds:
            raise bad("start", list(ds.data_vars), "its `region_mask` is gone", line)
        values = np.array(ds.region_mask.values[1:], np.float64)
        masks = torch.from_numpy(values if values.ndim == 4 else values[:, None])[:, :, None]
        regions = []
        for told, mask in zip(facts, values, strict=True):
            told = {k: v for k, v in told.items() if k not in ("active", "solver_options")}
            if isinstance(told["weight"], str):
                why = f'the weight of "{told["name"]}" was a function, which no record holds'
                raise bad("start", told["weight"], why, line)
            regions.append(Region(mask, **{**told, "span": _pair(told["span"])}))
        return cls(regions, masks, device, [_pair(told["active"]) for told in facts], grid_of(ds))

    def recorded_in(self, ds: xr.Dataset) -> bool:
        """Whether these are the regions of a record, as far as that knows them."""
        kept = ds.attrs.get("regions") == self.facts() and "region_mask" in ds
        if not kept or not np.array_equal(ds.region_mask.values, self._masks()):
            return False
        if "weight" not in ds or not any(callable(r.weight) for r in self.regions):
            return True
        # two functions may have one name
        pairs = zip(ds.sigma.values.tolist(), ds.weight.values, strict=True)
        return all(np.array_equal(self._array(self.at(sigma).w), w) for sigma, w in pairs)

    def warn_of_idle(self, factors: Sequence[Sequence[float]]) -> None:
        """Says so where a region is asked at no level: outside its span, or before it joins."""
        for k, (region, (high, low)) in enumerate(zip(self.regions, self.active, strict=True)):
            always_off = region.weight == 0  # who asks for that knows
            if factors and not always_off and not any(row[k] > 0 for row in factors):
                warnings.warn(
                    f'region "{region.name}" is active at no level of this run: sigma from {high:.4g} to '
                    f"{low:.4g}, by its span and strength, has none with weight. Its prompt is not asked",
                    stacklevel=5,
                )

    def one_solver(self) -> None:
        """Raises where a region has a solver of its own."""
        for region in self.regions:
            if region.solver is not None:
                why = f'"{region.name}" has one of its own, and here all regions share the run\'s'
                raise bad("solver", region.solver, why, 'tk.regional(model, regions, mode="step")')

    # --- weights

    def factors(self, sigma: float) -> tuple[float, ...]:
        """What the masks are multiplied by at a level; 0 for a region that is not active there."""
        found = []
        for region, (high, low) in zip(self.regions, self.active, strict=True):
            active = low * (1.0 - NEAR) <= sigma <= high * (1.0 + NEAR)
            value = _weight(region, sigma) if active else 0.0
            real = isinstance(value, (int, float, np.number)) and 0 <= value <= MOST
            if not real:
                why = (
                    f'the weight of "{region.name}" at sigma {sigma:.6g} must be a number from 0 to {MOST:g}'
                )
                raise bad("weight", value, why, "tk.Region(mask, weight=lambda sigma: 1.0)")
            found.append(float(value))
        return tuple(found)

    def at(self, sigma: float) -> Weights:
        """The weights at a level."""
        # masks that say when are the same from one level of the run to the next
        hop = sum(s >= sigma * (1.0 - NEAR) for s in self.levels) if self.differential else 0
        known = (*self.factors(sigma), hop)
        if known not in self._known:
            while len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[known] = self._weights(known[:-1], sigma)
        return self._known[known]

    def _planes(self, sigma: float) -> torch.Tensor:
        """The masks at a level, (region, sample, 1, y, x)."""
        if not self.differential:
            return self.masks
        planes = []
        for region, mask, since in zip(self.regions, self.masks, self._since, strict=True):
            plane = mask if since is None else joined(since, sigma)
            planes.append(1.0 - plane if region.keep and since is not None else plane)
        return torch.stack(planes)

    def _weights(self, factors: Sequence[float], sigma: float) -> Weights:
        scale = torch.tensor(factors, dtype=torch.float64)
        m = self._planes(sigma) * scale.view(-1, 1, 1, 1, 1)
        keep = torch.tensor([r.keep for r in self.regions]).view(-1, 1, 1, 1, 1)
        asked = _shares(torch.where(keep, 0.0, m))
        w, kept = asked, None
        if self.keeps:  # what is kept goes before all others, who have what it leaves
            shares = _shares(torch.where(keep, m, 0.0))
            kept = 1.0 - shares[0]
            w = asked * shares[0]
            w[1:] += shares[1:]
        present = tuple(k for k, one in enumerate(asked) if bool((one > 0).any()))
        inside = (asked[list(present)] > 0)[:, :, 0].to(w.dtype)
        areas = inside / inside.sum((2, 3), keepdim=True)
        several = sum(bool((one > 0).any()) for one in w) > 1
        made = Weights(w, asked, present, kept, areas, _seams(w) if several else None)
        return Weights(*(sent(v, self.device) if isinstance(v, torch.Tensor) else v for v in made))

    # --- noise

    def start_noise(self, base: torch.Tensor, seed: int | None) -> torch.Tensor:
        """Unit noise of which each region has its own by its `noise_strength`; unit wherever masks mix.

        n = sum_j a_j Z_j / sqrt(sum_j a_j^2) over the independent noises Z_j (the run's, and one a seed):
        sum(w n)/sqrt(sum(w^2)) where each region has its own. a_j is the weight of its regions, by the masks
        alone: noise is there from the beginning, whenever a region joins.
        """
        w = self._weights([1.0] * len(self.regions), 0.0).w
        amounts: dict[int | None, Any] = {None: w[0]}
        drawn, size = {None: base}, w[0]
        for region, share in zip(self.regions, w[1:], strict=True):
            old, new = 1.0, 0.0
            if region.noise_strength > 0 and region.seed != seed:
                if region.seed not in drawn:
                    drawn[region.seed] = Keyed(region.seed, base.shape, base.dtype, base.device).start()
                old, new = _mixing(region, base, drawn[region.seed])
            # along the arc the two noises are not quite orthogonal, nor is a^2 + b^2 quite 1
            size = size + share * torch.hypot(*(torch.as_tensor(a, dtype=w.dtype) for a in (old, new)))
            amounts[None] = amounts[None] + share * old
            if region.seed in drawn and region.seed is not None:
                amounts[region.seed] = amounts.get(region.seed, 0.0) + share * new
        return _united(amounts, drawn, size)

    def draws(
        self, noise: Callable, seed: int | None, rung: int, sigma: float, like: torch.Tensor
    ) -> Callable:
        """Draws of a rung of which each region with a seed has its own; unit wherever masks mix."""
        own = {r.seed for r in self.regions if r.seed is not None and r.seed != seed}
        if not own:
            return noise
        w = self.at(sigma).w
        amounts: dict[int | None, Any] = {None: w[0]}
        for region, share in zip(self.regions, w[1:], strict=True):
            of = region.seed if region.seed in own else None
            amounts[of] = amounts.get(of, 0.0) + share
        keyed = {s: Keyed(s, like.shape, like.dtype, like.device).at(rung) for s in own}

        def draw(s: float, t: float) -> torch.Tensor:
            return _united(amounts, {None: noise(s, t), **{k: fresh(s, t) for k, fresh in keyed.items()}})

        return draw

    # --- the record

    def facts(self) -> list[dict[str, Any]]:
        """The regions as plain JSON, without their masks."""
        told = []
        for region, (high, low) in zip(self.regions, self.active, strict=True):
            told.append({**region.facts(), "active": [None if math.isinf(high) else high, low]})
        return told

    def attributes(self) -> dict[str, Any]:
        """What the regions add to the attributes of a run."""
        return {"regions": self.facts(), GRID: self.levels}

    def coordinates(self) -> dict[str, Any]:
        """The names of the regions, base first."""
        return {"region": ("region", np.array(self.names, dtype=object), attributes("region"))}

    def inputs(self, levels: Sequence[float]) -> dict[str, Any]:
        """The arrays by which a run with these regions is known again."""
        return {"regions": self.masks, "weights": np.array([self.factors(s) for s in levels])}

    def recorded(self) -> dict[str, Any]:
        """What a `Recorder` is told; with an axis of samples where masks differ by sample."""
        place = ("y", "x") if self.masks.shape[1] == 1 else ("sample", "y", "x")
        weight = (("step", "region", *place), lambda sigma: self._rows(self.at(sigma).w))
        return {
            "coordinates": self.coordinates(),
            "levels": {"weight": weight},
            "fixed": {"region_mask": (("region", *place), self._masks())},
        }

    def _masks(self) -> np.ndarray:
        """`region_mask`: what the masks leave, and the masks."""
        left = (1.0 - self.masks.sum(0, keepdim=True)).clamp(min=0.0)
        return self._array(torch.cat([left, self.masks]))

    def _rows(self, w: torch.Tensor) -> torch.Tensor:
        """(region, sample, 1, y, x) for the record, without an axis of samples where there is one for all."""
        return w[:, 0, 0] if self.masks.shape[1] == 1 else w[:, :, 0]

    def _array(self, w: torch.Tensor) -> np.ndarray:
        return self._rows(w).cpu().numpy()


def _shares(masks: torch.Tensor) -> torch.Tensor:
    """Masks over max(their sum, 1), after what they leave of 1."""
    total = masks.sum(0)
    whole = total >= 1.0 - LEFT
    return torch.cat([torch.where(whole, 0.0, 1.0 - total)[None], masks / torch.where(whole, total, 1.0)])


def _seams(w: torch.Tensor) -> torch.Tensor:
    """Weights of the means over neighbours where regions meet, and over the others: NaN where none are."""
    wholly = w[:, :, 0] >= WHOLLY
    across = (wholly[..., 1:] & wholly[..., :-1]).any(0)
    down = (wholly[..., 1:, :] & wholly[..., :-1, :]).any(0)
    alike = torch.cat([across.flatten(1), down.flatten(1)], dim=1)
    sides = torch.stack([~alike, alike], dim=2).to(w.dtype)
    return sides / sides.sum(1, keepdim=True)


def grid_of(ds: xr.Dataset) -> list[float]:
    """The levels by which the record of an unsample says when, falling."""
    return ds.attrs.get(GRID) or ds.sigma.values[::-1].tolist()


def _weight(region: Region, sigma: float) -> Any:
    """The weight of a region at a level, as it says it; an array of one number is one."""
    if not callable(region.weight):
        return region.weight
    try:
        value = region.weight(sigma)
    except Exception as exc:
        why = f'the weight of "{region.name}" fails at sigma {sigma:.6g} ({exc or type(exc).__name__})'
        line = "tk.Region(mask, weight=lambda sigma: 1.0)"
        raise bad("weight", region.weight, why, line) from exc
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _active(region: Region, levels: Sequence[float]) -> tuple[float, float]:
    """The span of a region, from the hop at which its strength lets it join: round((1 - s) n) of n."""
    high, low = region.span
    if region.strength < 1:
        high = min(high, levels[math.floor((1.0 - region.strength) * (len(levels) - 1) + 0.5)])
    return high, low


def _pair(told: Sequence[float | None]) -> tuple[float, float]:
    high, low = told
    return (math.inf if high is None else high), low


def _mixing(region: Region, n: torch.Tensor, m: torch.Tensor) -> tuple[Any, Any]:
    """How much of the noise N and of its own M a region has: two numbers, or two (sample, 1, 1, 1)."""
    v = region.noise_strength
    if region.noise_method == "linear":
        norm = math.sqrt((1.0 - v) ** 2 + v * v)
        return (1.0 - v) / norm, v / norm
    a, b = n.flatten(1), m.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-300)
    angle = torch.acos(cosine.clamp(-1.0, 1.0)).view(-1, 1, 1, 1)
    sine = torch.sin(angle)
    whole = sine > ALIKE  # of noises that point alike, or apart, there is no arc between them
    sine = torch.where(whole, sine, 1.0)
    return (torch.where(whole, torch.sin((1.0 - v) * angle) / sine, 1.0 - v),
            torch.where(whole, torch.sin(v * angle) / sine, v))  # fmt: skip


def _united(amounts: dict[Any, Any], drawn: dict[Any, torch.Tensor], size: Any = 1.0) -> torch.Tensor:
    """size sum a_j Z_j / sqrt(sum a_j^2); the one noise itself where there is but one."""
    if len(amounts) == 1:
        return drawn[None]
    total = sum(a * drawn[key] for key, a in amounts.items())
    return size * total / torch.sqrt(sum(torch.as_tensor(a).square() for a in amounts.values()))
