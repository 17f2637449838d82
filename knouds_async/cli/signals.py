"""Signals that end a command like Ctrl-C: the default action would end the process between a submit and its id."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TERMINATION_SIGNALS: Final = frozenset({signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)})
"""SIGTERM, and SIGHUP (the terminal was closed), which does not exist on Windows."""


@contextmanager
def termination_as_ctrl_c() -> Iterator[None]:
    """Turn them into Ctrl-C while the block runs; nothing is changed where Ctrl-C is ignored or handled by others."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    numbers = [one for one in TERMINATION_SIGNALS if signal.getsignal(one) is signal.SIG_DFL]
    for one in numbers:
        signal.signal(one, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for one in numbers:
            signal.signal(one, signal.SIG_DFL)
