"""The typeface of pictures drawn in Python: the first of ours that is there, and the weight of headings."""

from functools import cache

from matplotlib.font_manager import fontManager

FACES = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")  # the last is matplotlib's
SEMIBOLD, BOLD = 600, 700


@cache
def face() -> str:
    """The first of our typefaces that is installed; asking for one that is not writes to stderr."""
    there = set(fontManager.get_font_names())
    return next(name for name in FACES if name in there)


@cache
def heavy() -> int:
    """The weight of headings: semibold where the typeface has it; asking for what it has not does so too."""
    there = {font.weight for font in fontManager.ttflist if font.name == face()}
    return SEMIBOLD if SEMIBOLD in there else BOLD
