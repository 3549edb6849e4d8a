"""Encoded prompts."""

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch

from ..errors import bad

KEPT = 8  # encoded prompts, and batches of them, that a model keeps
DIGESTED = re.compile(r"Condition\(.*, [0-9a-f]{16}\)", re.DOTALL)  # what a record has of one


class Condition:
    """A prompt, encoded: what ``model.condition(text)`` gives, and a prompt itself.

    A run that is asked with one records its name and the digest of its numbers, not the numbers: a replay is
    given it again.

    Attributes
    ----------
    text : str or None
    tensors : dict of str to Tensor (1, ...)
        By the names under which the network takes them; to edit them, make another `Condition` of them.

    Examples
    --------
    >>> import torch
    >>> Condition("a cat", {"encoder_hidden_states": torch.zeros(1, 77, 8)})
    Condition('a cat', 5d88d312333eb4cc)
    """

    def __init__(self, text: str | None, tensors: Mapping[str, torch.Tensor]):
        self.text, self.tensors = text, dict(tensors)

    def __repr__(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode() + tensor.detach().cpu().double().numpy().tobytes())
        return f"Condition({self.text!r}, {digest.hexdigest()[:16]})"


def kept(held: dict, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `held` has under a key, made where it has nothing; the oldest goes where there are too many."""
    if key not in held:
        while len(held) >= KEPT:
            held.pop(next(iter(held)))
        held[key] = make()
    return held[key]


def checked(prompt: Any, name: str, takes: Iterable[str]) -> Any:
    """A text, None or a `Condition` of the tensors that a network takes; else an error."""
    if isinstance(prompt, Condition):
        lacks = [each for each in takes if each not in prompt.tensors]
        if lacks:
            why = f"encoded for another family: it lacks {', '.join(lacks)}"
            raise bad(name, prompt, why, f"{name}=model.condition({prompt.text!r})")
        return prompt
    if prompt is not None and not isinstance(prompt, str):
        wanted = "a text, None for none, or what model.condition(text) gives; a list is one a sample"
        raise bad(name, prompt, wanted, f'{name}="a photograph of a cat"', TypeError)
    if prompt is not None and DIGESTED.fullmatch(prompt):
        why = "the record has the name of an encoded prompt, and not what it holds"
        raise bad(name, prompt, why, f"tk.sample(model, start=run, {name}=condition)")
    return prompt


def stack(conditions: list[Condition], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of some prompts, (row, ...), as the network takes them."""
    made = {}
    for name in conditions[0].tensors:
        each = [condition.tensors[name] for condition in conditions]
        if len({tensor.shape[1:] for tensor in each}) > 1:
            tokens = sorted({tuple(tensor.shape[1:]) for tensor in each})
            line = "prompt and negative encoded alike, as model.condition(text) does"
            raise bad("prompt", tokens, f"{name} of one batch have one shape", line)
        made[name] = torch.cat(each).to(device, dtype)
    return made
