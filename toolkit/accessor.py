"""``ds.ladder``: functions of a recorded run as methods of its Dataset, after ``import toolkit.accessor``.

>>> import toolkit as tk, toolkit.accessor
>>> ds = tk.testing.ladder_dataset()
>>> ds.ladder.at(sigma=7).identical(tk.at(ds, sigma=7))
True
"""

from os import PathLike
from typing import Any

import xarray as xr

from . import dataset, diagnostics


@xr.register_dataset_accessor("ladder")
class Ladder:
    """Thin door to `tk.at`, `tk.normalized`, `tk.diagnostics.moments`, `tk.view` and `tk.to_html`.

    Nothing is checked here: xarray turns errors of an accessor's constructor into a RuntimeError, with
    which even ``hasattr(ds, "ladder")`` fails. Each function checks what it is given.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def at(self, **where: float) -> xr.Dataset:
        """The rung nearest to a level, as in ``ds.ladder.at(sigma=7)``; see `tk.at`."""
        return dataset.at(self._ds, **where)

    def normalized(self, mode: str) -> xr.Dataset:
        """The run as `mode` normalises it; see `tk.normalized`."""
        return dataset.normalized(self._ds, mode)

    def moments(self) -> xr.Dataset:
        """Mean, std, skewness and kurtosis of every rung; see `tk.diagnostics.moments`."""
        return diagnostics.moments(self._ds)

    def view(self, model: Any = None) -> Any:
        """A widget to look at the run; see `tk.view`."""
        from . import views  # widgets take a while to import, and reading numbers needs none

        return views.view(self._ds, model=model)

    def to_html(self, path: str | PathLike[str], model: Any = None) -> Any:
        """The widget as a file that opens without a kernel; see `tk.to_html`."""
        from . import views

        return views.to_html(self._ds, path, model=model)
