"""A run in words: its title and its provenance, from the attributes, and numbers as the views write them."""

import math
from collections.abc import Mapping
from typing import Any

TITLES = {
    "unsample": "Unsampling",
    "sample": "Sampling",
    "ladder": "Noise ladder",
    "regional": "Regional sampling",
    "round_trip": "Round trip",
}
MINUS, THIN = "\u2212", "\u2009"


def title(attrs: Mapping[str, Any]) -> str:
    """What kind of run it is: ``Unsampling``, ``Noise ladder``..."""
    kind = str(attrs.get("kind") or "run")
    return TITLES.get(kind, kind.replace("_", " ").capitalize())


def provenance(attrs: Mapping[str, Any], rows: int) -> list[str]:
    """How it was made, the most telling word first: solver, schedule, steps, noise, path, guidance, seed."""
    named = (attrs.get(key) for key in ("solver", "schedule"))
    words = [w.get("name") if isinstance(w, Mapping) else w for w in named]
    words = [str(w) for w in words if w and len(str(w)) <= 40]
    words.append("1 rung" if rows == 1 else f"{count(rows - 1)} step{'s' if rows > 2 else ''}")
    if attrs.get("kind") == "ladder" and attrs.get("coupling"):
        words.append(f"{attrs['coupling']} noise")
    words += [str(attrs["path"])] if attrs.get("path") else []
    if isinstance(attrs.get("cfg"), (int, float)) and attrs["cfg"] != 1:
        words.append(f"cfg {attrs['cfg']:g}")
    prompt = attrs.get("prompt")
    words += [f"prompt {prompt}"] if isinstance(prompt, (int, str)) and 0 < len(str(prompt)) <= 24 else []
    return words + ([f"seed {attrs['seed']}"] if attrs.get("seed") is not None else [])


def count(number: int) -> str:
    """Thousands apart by a thin space, from 10 000 on."""
    return f"{number:,}".replace(",", THIN) if number >= 10_000 else str(number)


def sigma(value: float, digits: int = 3) -> str:
    """A noise level with `digits` significant digits; 0 is exact, and below 0.001 it is written 1.2e-5."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, power = f"{value:.1e}".split("e")
        return minus(f"{mantissa}e{int(power)}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return minus(f"{value:.{decimals}f}")


def error(value: float) -> str:
    """An error with two significant digits; what rounding alone makes is below 1e-15."""
    if value < 1e-15:
        return f"< 1e{MINUS}15"
    return minus(
        f"{value:.2g}"
        if value >= 1e-3
        else "e".join((f"{value:.1e}".split("e")[0], f"{math.floor(math.log10(value))}"))
    )


def minus(text: str) -> str:
    """On screen a minus is U+2212."""
    return text.replace("-", MINUS)
