"""Looking at runs: the scrubber in a notebook, as a page, as a still picture. No torch here."""

from .chart import atlas_chart
from .marks import atlas_table
from .page import to_html
from .scrubber import Scrubber, scrub, view
from .sheet import contact_sheet, strip

__all__ = ["Scrubber", "atlas_chart", "atlas_table", "contact_sheet", "scrub", "strip", "to_html", "view"]
