"""Several conditions in one denoiser, each under its mask, in one batched forward.

What comes out is a denoiser again, so every solver keeps its history and every inverse applies.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from . import inputs
from .denoisers import Denoised, Denoiser, Model
from .errors import bad
from .layouts import Layout, Weights


class Told(NamedTuple):
    """What an answer was fused of: kept as long as somebody has the answer."""

    weights: Weights
    opinions: Mapping[int, torch.Tensor]
    fused: torch.Tensor | None  # None: the answer itself


class Regional:
    """``D = sum_r w_r(sigma) [u_r + g_r (c_r - u_r)]``, the sum of the weights w is 1.

    One forward of the conditions that have weight, and of their unconditional ones where guidance or a solver
    needs them; conditions that are equal are evaluated once.

    Parameters
    ----------
    model : Model
    layout : Layout
        Regions with their masks on the latents of the run.
    prompt, negative, cfg
        Of the base, and of every region that has none of its own.
    """

    def __init__(
        self, model: Any, layout: Layout, prompt: Any = None, negative: Any = None, cfg: float = 1.0
    ):
        if not isinstance(model, Model):
            why = "regions bind conditions of their own: a model is wanted, with nothing bound to it yet"
            raise bad("model", model, why, "tk.regional(tk.load(), regions)", TypeError)
        own = [
            (prompt if r.prompt is None else r.prompt, negative if r.negative is None else r.negative,
             cfg if r.cfg is None else r.cfg) for r in layout.regions
        ]  # fmt: skip
        entries = [(prompt, negative, inputs.number("cfg", cfg, "cfg=1.0")), *own]
        self.model, self.layout = model, layout
        self.entries = [Denoiser(model, *entry) for entry in entries]
        self.cfg = max((e.cfg for e in self.entries), key=abs)
        self.path, self.levels, self.channels = model.path, model.levels, model.channels
        self.calls = self.rows = 0
        self._samples: int | None = None
        self._conditions: list[tuple[list, list]] = []
        self._tokens: list[tuple[tuple, tuple]] = []
        self._told: dict[int, tuple[Any, Told]] = {}

    def bind(self, samples: int) -> None:
        """Resolve all conditions of a batch, each once, so that a bad prompt raises before the first call."""
        if self._samples == samples:
            return
        known: dict[Any, list] = {}

        def resolved(entry: Denoiser, name: str) -> list:
            given = getattr(entry, name)
            token = tuple(map(_token, given)) if isinstance(given, (list, tuple)) else _token(given)
            key = (name, token)  # a model may take no prompt and no negative for different things
            if key not in known:
                known[key] = entry.resolved(name, samples)
            return known[key]

        self._conditions = [(resolved(e, "prompt"), resolved(e, "negative")) for e in self.entries]
        self._tokens = [tuple(tuple(map(_token, c)) for c in pair) for pair in self._conditions]
        self._samples = samples

    def denoise(self, x: torch.Tensor, sigma: float, uncond: bool = False) -> Denoised:
        """x0 at (x, sigma), and without guidance: the opinions of all regions by their weights."""
        weights = self.layout.at(sigma)
        answers = self.ask([(k, x, uncond) for k in weights.present], sigma)
        opinions = {k: a.x0 for k, a in zip(weights.present, answers, strict=True)}
        x0 = fuse(weights, opinions)
        self.remember(x0, weights, opinions)
        if not uncond:
            return Denoised(x0)
        return Denoised(
            x0, fuse(weights, {k: a.uncond for k, a in zip(weights.present, answers, strict=True)})
        )

    def ask(self, wanted: Sequence[tuple[int, torch.Tensor, bool]], sigma: float) -> list[Denoised]:
        """Answers of some of the regions at one level, (region, x, uncond) each, in one forward."""
        n = len(wanted[0][1])
        self.bind(n)
        slots: dict[Any, int] = {}
        blocks: list[torch.Tensor] = []
        conditions: list = []

        def slot(k: int, x: torch.Tensor, which: int) -> int:
            key = (id(x), self._tokens[k][which])
            if key not in slots:
                slots[key] = len(blocks)
                blocks.append(x)
                conditions.extend(self._conditions[k][which])
            return slots[key]

        free = [slot(k, x, 1) if self.entries[k].guided or u else None for k, x, u in wanted]
        bound = [slot(k, x, 0) for k, x, _ in wanted]
        self.calls += 1
        self.rows += n * len(blocks) * self.model.rows_each
        out = self.model.x0(torch.cat(blocks) if len(blocks) > 1 else blocks[0], sigma, conditions)
        answers = []
        for (k, _, _), at_u, at_c in zip(wanted, free, bound, strict=True):
            c = out[at_c * n : (at_c + 1) * n]
            u = None if at_u is None else out[at_u * n : (at_u + 1) * n]
            answers.append(Denoised(u + self.entries[k].cfg * (c - u) if self.entries[k].guided else c, u))
        return answers

    # --- what the record says of an answer

    def remember(self, x0: torch.Tensor, weights: Weights, opinions: Mapping[int, torch.Tensor]) -> None:
        """Keeps what `x0` was fused of, as long as `x0` is there."""
        self._told = {key: value for key, value in self._told.items() if value[0]() is not None}
        told = {k: o for k, o in opinions.items() if o is not x0}  # else it would live for ever
        self._told[id(x0)] = (weakref.ref(x0), Told(weights, told, None))

    def alias(self, x0: torch.Tensor, shown: torch.Tensor) -> None:
        """`shown` is what somebody made of the answer `x0`."""
        ref, told = self._told.pop(id(x0))
        self._told[id(shown)] = (weakref.ref(shown), told._replace(fused=ref()))

    def about(self, x0: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """`conflict` (region, sample) and `seam_gradient` (sample,) of an answer; empty for another array."""
        ref, told = self._told.get(id(x0), (None, None))
        if x0 is None or ref is None or ref() is not x0:
            return {}
        fused = x0 if told.fused is None else told.fused
        present, none = told.weights.present, x0.new_full((len(x0),), torch.nan)
        opinions = torch.stack([told.opinions.get(k, fused) for k in present])
        apart = dict(zip(present, _apart(opinions, fused, told.weights.areas), strict=True))
        # stacked: an index that is a list goes to the device, and the run waits for it
        conflict = torch.stack([apart.get(k, none) for k in range(len(self.entries))])
        return {"conflict": conflict, "seam_gradient": seam_gradient(x0, told.weights)}

    def __repr__(self) -> str:
        return f"Regional({self.model!r}, regions={self.layout.names[1:]})"


def fuse(weights: Weights, parts: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """sum_r w_r part_r over those that are asked; the part itself where there is but one."""
    first, *others = weights.present
    if not others:
        return parts[first]
    x = weights.asked[first] * parts[first]
    for k in others:
        x = x + weights.asked[k] * parts[k]
    return x.to(parts[first].dtype)


def seam_gradient(x0: torch.Tensor, weights: Weights) -> torch.Tensor:
    """How much steeper x0 is where regions meet, (sample,): 1 is as elsewhere.

    The mean absolute difference, over all channels, of neighbours that are not both of one and the same
    region (weight 0.95 or more), over that of all other neighbours. NaN where there are no such neighbours,
    or no others.
    """
    if weights.seams is None:
        return x0.new_full((len(x0),), torch.nan)
    across = (x0[..., 1:] - x0[..., :-1]).abs().mean(1)
    down = (x0[..., 1:, :] - x0[..., :-1, :]).abs().mean(1)
    slopes = torch.cat([across.flatten(1), down.flatten(1)], dim=1)
    mean = (slopes[:, None] @ weights.seams.to(slopes.dtype))[:, 0]
    return mean[:, 0] / mean[:, 1]


def _apart(opinions: torch.Tensor, fused: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    """rms distances of opinions, (region, sample, channel, y, x), from the fused one, where these count."""
    far = (opinions - fused).square().mean(2)
    return torch.sqrt((far * areas).sum((2, 3)))


def _token(value: Any) -> Any:
    """What two conditions must share to be the same one."""
    simple = value is None or isinstance(value, (int, float, str))
    return (type(value).__name__, value) if simple else id(value)
