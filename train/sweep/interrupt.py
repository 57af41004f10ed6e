"""Ctrl-C: once ends after the trial in flight has saved, twice at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from train import stopping


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Take the first Ctrl-C as a wish to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _first(signum: int, frame: FrameType | None) -> None:
    stopping.ask()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("\nStopping: the trials in flight are saved first. Ctrl-C again stops at once.", file=sys.stderr, flush=True)
