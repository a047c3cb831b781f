"""Progress on stderr, where that is a terminal and a command takes longer than two seconds."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from polarlib.arrays.formats import printable

AFTER = 2.0  # seconds after which the line appears
EVERY = 0.1  # seconds between its changes
LEAST_WIDTH, WIDTH = 20, 80  # columns: at least, and where the terminal does not report them


def is_terminal() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    if sys.stderr is None or os.environ.get("TERM") == "dumb":
        return False
    try:
        return sys.stderr.isatty()
    except ValueError:  # closed
        return False


class Bar:
    """One line with a bar, the number of jobs, the time, and the name of the present job.

    It is a callback too, as polarlib's functions call theirs (:class:`polarlib.result.Progress`).
    """

    def __init__(self, total: int | None, shown: bool) -> None:
        self._jobs, self._begun = total, -1
        self._bar: Progress | None = None
        self._next = time.monotonic() + AFTER
        self._lock = threading.Lock()
        if shown:
            # The size is given, as rich fails on a COLUMNS such as "0" or "²".
            width = WIDTH
            with contextlib.suppress(OSError, ValueError):
                width = os.get_terminal_size(sys.stderr.fileno()).columns or WIDTH
            self._bar = Progress(
                BarColumn(20),
                TextColumn("{task.fields[count]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
                # rich counts any stream as a terminal under FORCE_COLOR: is_terminal decides.
                console=Console(
                    stderr=True, force_terminal=True, width=max(width, LEAST_WIDTH), height=25
                ),
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=total, count="")

    def begin(self, what: str) -> None:
        """Show the name of the next job; the one before counts as done."""
        if self._bar is None:
            return
        self._begun += 1
        self._change(what, None if self._jobs is None else self._begun, self._jobs)

    def __call__(self, k: Any, value: Any) -> None:
        """Show what a function of polarlib reports, as its callback."""
        if self._bar is not None:
            number = f" ({value:.4g})" if isinstance(value, int | float) else ""
            self._change(f"{k.what}{number}", int(k), k.total)

    def tick(self, stop: threading.Event) -> None:
        """Keep the line moving while one call takes long, until `stop` is set."""
        with contextlib.suppress(OSError):  # a terminal that has gone
            wait = AFTER
            while not stop.wait(max(wait, 0.0)):
                self._show()
                wait = EVERY

    def close(self) -> None:
        """Remove the line."""
        if self._bar is not None and self._bar.live.is_started:
            self._bar.stop()

    def _change(self, what: str, done: int | None, total: int | None) -> None:
        assert self._bar is not None
        count = "" if done is None else f"{done}" if total is None else f"{done}/{total}"
        known: dict[str, Any] = {"completed": done or 0, "total": total}
        self._bar.update(self._task, description=printable(what), count=count, **known)
        self._show()

    def _show(self) -> None:
        assert self._bar is not None
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return
            if not self._bar.live.is_started:
                self._bar.start()
            self._bar.refresh()
            self._next = now + EVERY


@contextlib.contextmanager
def progress(
    total: int | None = None, *, quiet: bool = False, timed: bool = False
) -> Iterator[Bar]:
    """Show the progress of a command on stderr, if that is a terminal and it takes long.

    Parameters
    ----------
    total : int, optional
        Number of jobs, whose names :meth:`Bar.begin` takes. Without one they are not counted.
    quiet : bool, optional
        Whether nothing is shown in any case, as with ``--json``.
    timed : bool, optional
        Whether calls are timed meanwhile. Then no other thread runs, and the line appears and
        changes only where a job begins or a callback is called.
    """
    shown = not quiet and is_terminal()
    bar, stop = Bar(total, shown), threading.Event()
    ticker = threading.Thread(target=bar.tick, args=(stop,), daemon=True)
    if shown and not timed:
        ticker.start()
    try:
        yield bar
    finally:
        stop.set()
        if ticker.is_alive():
            ticker.join()
        bar.close()
