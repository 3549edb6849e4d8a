"""``ds.ladder``: functions of a recorded run as methods of its Dataset, after ``import toolkit.accessor``.

>>> import toolkit as tk, toolkit.accessor
>>> ds = tk.testing.ladder_dataset()
>>> ds.ladder.at(sigma=7).identical(tk.at(ds, sigma=7))
True
"""

from os import PathLike
from pathlib import Path
from typing import Any

import xarray as xr

from . import dataset, decoding, diagnostics


@xr.register_dataset_accessor("ladder")
class Ladder:
    """Thin door to the functions of a run: `tk.at`, `tk.normalized`, `tk.diagnostics.moments`, `tk.views`.

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

    def decode(self, model: Any, of: str = "latent") -> xr.DataArray:
        """Images of every rung, `image` (step, sample, y, x, rgb); see `toolkit.decoding.decode`."""
        return decoding.decode(self._ds, model, of)

    def view(self, model: Any = None) -> Any:
        """A widget to look at the run; see `tk.view`."""
        return _views().view(self._ds, model=model)

    scrub = view

    def normalize(self, mode: str = "channel") -> Any:
        """A widget that compares the run with itself normalised; see `tk.views.normalize`."""
        return _views().normalize(self._ds, mode=mode)

    def schedules(self, model: Any = None) -> Any:
        """A widget of schedules of as many steps as the run has; see `tk.views.schedules`."""
        return _views().schedules(model, steps=min(max(2, self._ds.sizes.get("step", 21) - 1), 1000))

    def regions(self, **options: Any) -> Any:
        """A widget of the regions of the run; see `tk.views.regions`."""
        return _views().regions(self._ds, **options)

    def compare(self, *others: xr.Dataset, **options: Any) -> Any:
        """A widget that compares the run with others at equal noise; see `tk.views.compare`."""
        return _views().compare(self._ds, *others, **options)

    def to_html(self, path: str | PathLike[str], model: Any = None) -> Path:
        """The widget as a file that opens without a kernel; see `tk.to_html`."""
        return _views().to_html(self._ds, path, model=model)

    def save(self, path: str | PathLike[str], model: Any = None, **options: Any) -> Path:
        """The run as a film (``.gif``, ``.mp4``), a picture of its first rung (``.png``), or a page.

        See `View.save` for the options.
        """
        return _views().view(self._ds, model=model).save(path, **options)


def _views() -> Any:
    """Widgets take a while to import, and reading numbers needs none."""
    from . import views

    return views
