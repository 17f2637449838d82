"""What asks a command to end besides Ctrl-C, and how `knouds run` takes it for that, to say what it leaves behind.

Rule of the file: left to itself, such a signal ends the process between a submit and its id.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TERMINATION_SIGNALS: Final = frozenset({signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)})
"""SIGTERM, and SIGHUP, which tells that the terminal is gone; there is none on Windows."""


@contextmanager
def termination_as_ctrl_c() -> Iterator[None]:
    """Take them so while the block runs; where Ctrl-C itself is ignored, or not ours to take, leave all as it is."""
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
