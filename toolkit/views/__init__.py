"""Looking at runs: the scrubber in a notebook, as a page, as a still picture. No torch here."""

from .chart import atlas_chart
from .comparer import Comparer, compare
from .explorer import ScheduleExplorer, schedules
from .inspector import RegionInspector, regions
from .marks import atlas_table
from .normalizer import Normalizer, normalize
from .page import to_html
from .scrubber import Scrubber, scrub, view
from .sheet import contact_sheet, strip

__all__ = [
    "Comparer",
    "Normalizer",
    "RegionInspector",
    "ScheduleExplorer",
    "Scrubber",
    "atlas_chart",
    "atlas_table",
    "compare",
    "contact_sheet",
    "normalize",
    "regions",
    "schedules",
    "scrub",
    "strip",
    "to_html",
    "view",
]
