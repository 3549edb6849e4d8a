"""A thread that writes behind a run: while one thing is written, the next is computed."""

import threading
from collections.abc import Callable
from typing import Any


class Writer:
    """Calls ``write(items)`` in the background, one call at a time.

    No more than one call is ever under way, and nothing waits for it: so memory holds two things at most, the
    one that is written and the one that is made, and a killed process loses no more than these.

    An error of the thread is raised by the next call of `put` or `flush`.
    """

    def __init__(self, write: Callable[[Any], None]):
        self._write, self._changed = write, threading.Condition()
        self._item: Any = None
        self._closed = False
        self._error: BaseException | None = None
        # a daemon: where the interpreter ends without `close`, it is as if the process was killed
        self._thread = threading.Thread(target=self._run, name="toolkit store", daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        """Hands over `item` to be written, when the one before is."""
        self.flush()
        with self._changed:
            self._item = item
            self._changed.notify_all()

    def flush(self) -> None:
        """Returns when all is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is None)
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """Ends the thread, when all is written; raises nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._item is not None or self._closed)
                if self._item is None:
                    return
            try:
                if self._error is None:
                    self._write(self._item)
            except BaseException as exc:
                self._error = exc
            with self._changed:
                self._item = None
                self._changed.notify_all()
