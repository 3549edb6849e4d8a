"""A table of names that reads well: a mapping with a one-line-a-row repr and an HTML table for notebooks."""

from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from .errors import unknown


class Table(Mapping):
    """Names to entries, in the order they were added; an unknown name raises with the closest one.

    `columns` maps a heading to a function (name, entry) -> text, for the two reprs.
    """

    def __init__(self, title: str, noun: str, line: str, columns: dict[str, Callable[[str, Any], str]]):
        self.title, self.noun, self.line, self.columns = title, noun, line, columns
        self._entries: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if isinstance(name, str) and name in self._entries:
            return self._entries[name]
        raise unknown(self.noun, name, self._entries, self.line)

    def __setitem__(self, name: str, entry: Any) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _rows(self) -> list[list[str]]:
        return [list(self.columns)] + [
            [f(n, e) for f in self.columns.values()] for n, e in self._entries.items()
        ]

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(len(r[k]) for r in rows) for k in range(len(self.columns))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        return f"{self.title} ({len(self)})\n" + "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *lines = self._rows()
        cells = "".join(f"<th>{escape(h)}</th>" for h in head)
        rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in r) + "</tr>" for r in lines)
        body = f"<thead><tr>{cells}</tr></thead><tbody>{rows}</tbody>"
        return f"<table><caption>{escape(self.title)}</caption>{body}</table>"
