"""Where a run stands, as one file: all that a solver needs to go on bit for bit, in full precision.

The file is written beside its place and renamed into it, so that it is there whole or not at all.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from . import later
from .solvers.contract import Eval


@dataclass
class Bookmark:
    """The state of a run after a hop.

    Attributes
    ----------
    turn : int
        The pass over the rows that it stands in: 1 for the climb, 2 for what records on the way down.
    i : int
        The hop to go on with; -1 where that pass has not begun.
    x : Tensor
        The state there.
    past : tuple of Eval
        What the solver remembers.
    calls, rows : int
        Of the model, until now.
    more : dict
        What else the pass needs: tensors, numbers, None.
    done : bool
        Whether the pass that asks is behind it.
    """

    turn: int
    i: int = -1
    x: torch.Tensor | None = None
    past: tuple[Eval, ...] = ()
    calls: int = 0
    rows: int = 0
    more: dict[str, Any] = field(default_factory=dict)
    done: bool = False

    def pack(self, known: dict[int, Any]) -> tuple[str, dict[str, Any]]:
        """The bookmark as JSON, and the tensors that it names; copies on the host.

        `known`: copies by the id of their tensor, those of the bookmark before and then of this one. A past
        moves on by one evaluation a hop; the others are not copied again.
        """
        tensors: dict[str, Any] = {}
        copies: dict[int, Any] = {}
        state = [self.turn, self.i, self.x, self.past, self.calls, self.rows]
        packed = {"list": [_pack(value, tensors, copies, known) for value in state]}
        packed["list"].append(_pack(self.more, tensors, copies, {}))  # its tensors may be written on
        known.clear()
        known.update(copies)
        return json.dumps(packed), tensors

    @classmethod
    def read(cls, file: FilePath, device: Any) -> "Bookmark | None":
        """The bookmark of a file, its tensors on `device`; None where there is none."""
        if not file.exists():
            return None
        with safe_open(file, "pt", device=str(device)) as stored:
            state = json.loads(stored.metadata()["bookmark"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return cls(*_unpack(state, tensors))


def write(file: FilePath, packed: str, tensors: dict[str, later.Copy]) -> None:
    """Puts a packed bookmark in the place of the one before, in one go."""
    fresh = file.with_suffix(".new")
    held = {name: copy.tensor() for name, copy in tensors.items()}
    fresh.write_bytes(save(held, metadata={"bookmark": packed}))
    os.replace(fresh, file)


def _pack(value: Any, tensors: dict[str, Any], copies: dict[int, Any], known: dict[int, Any]) -> Any:
    """`value` as JSON; a tensor becomes a name, once, however often it is met."""
    if isinstance(value, torch.Tensor):
        if id(value) not in copies:
            # the tensor is kept beside its copy: as long as it lives, nothing else has its id
            copies[id(value)] = known.get(id(value)) or (value, later.Copy(value))
        name = f"t{list(copies).index(id(value))}"
        tensors[name] = copies[id(value)][1]
        return {"tensor": name}
    if isinstance(value, Eval):  # what is for the record alone is in the record
        return {"eval": [_pack(v, tensors, copies, known) for v in value[:5]]}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [_pack(v, tensors, copies, known) for v in value]}
    if isinstance(value, dict):
        return {"dict": {k: _pack(v, tensors, copies, known) for k, v in value.items()}}
    return value  # json keeps every bit of a float


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in held.items()}
    items = [_unpack(v, tensors) for v in held]
    return Eval(*items) if kind == "eval" else tuple(items) if kind == "tuple" else items
