"""Class labels as prompts: what networks without a text encoder are conditioned on."""

from typing import Any

import numpy as np
import torch

from ..denoisers import one_a_sample
from ..errors import bad, unknown
from .adapter import Pipeline
from .texts import kept


class Labelled(Pipeline):
    """A pipeline whose prompts are class labels, or their names where it has them; None and "" are `none`.

    Attributes
    ----------
    classes : int
    labels : dict of str to int
    none : int or None
        The label that stands for no class.
    """

    classes = 0
    labels: dict[str, int] = {}  # noqa: RUF012
    none: int | None = None

    def conditions(self, prompt: Any, samples: int, name: str = "prompt") -> list:
        """Class labels, one a sample; text is looked up in the pipeline's labels."""
        return one_a_sample(prompt, samples, self._label, name)

    def _label(self, prompt: Any, name: str) -> int | None:
        if isinstance(prompt, str) and not prompt:
            prompt = None
        if prompt is None and (self.none is not None or self.classes == 0 or name == "negative"):
            return self.none
        if self.classes == 0:
            raise bad(name, prompt, "this model has no conditions to bind", f"{name}=None")
        if isinstance(prompt, str) and self.labels:
            if prompt not in self.labels:
                raise unknown(name, prompt, self.labels, f'{name}="{{}}"')
            return self.labels[prompt]
        whole = isinstance(prompt, (int, np.integer)) and not isinstance(prompt, bool)
        if not whole or not 0 <= prompt < self.classes:
            raise bad(name, prompt, f"a class label from 0 to {self.classes - 1}", f"{name}=3")
        return int(prompt)

    def _stacked(self, conditions: list, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.classes == 0:
            return {}
        if None in conditions:
            why = "guidance needs one, and this network has no label for no class"
            raise bad("negative", None, why, "negative=0, or cfg=1.0")
        key = (*conditions, x.device)
        return {"class_labels": kept(self._batches, key, lambda: torch.tensor(conditions, device=x.device))}

    def ask(self, x: torch.Tensor, time: torch.Tensor, conditions: list) -> torch.Tensor:
        """The network under labels, where it has any; a learned variance is no use to an ODE."""
        told = self._stacked(conditions, x)
        return self._forward(x, timestep=time, return_dict=False, **told)[0][:, : self.channels]
