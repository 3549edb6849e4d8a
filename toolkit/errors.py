"""What our errors say: what you gave, what is possible, and the line to type."""

import difflib
from collections.abc import Iterable


def bad(
    argument: str, given: object, wanted: str, line: str, kind: type[Exception] = ValueError
) -> Exception:
    """The error for a wrong argument: names it, shows `given`, says what is wanted, ends with `line`."""
    shown = repr(given)
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    return kind(f"{argument}={shown}: {wanted}. Try: {line}")


def unknown(argument: str, given: object, names: Iterable[str], line: str, why: str = "") -> ValueError:
    """The error for a name that is not in a table: offers the closest one; `{}` in `line` stands for it."""
    names = list(names)
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.0)
    best = close[0] if close else (names[0] if names else "")
    wanted = f"no such {argument}{why}; there are {', '.join(names)}"
    return bad(argument, given, wanted, line.replace("{}", best))
