"""The command line, `knouds`: the extra `cli`; nothing else in the package imports it.

Only this package prints: what a program reads goes to stdout, messages and progress to stderr.
"""

import signal
import sys
from types import FrameType

_EXTRA = ("cyclopts", "rich")


def main() -> int:
    """Run `knouds` with the arguments of this process and return its exit code."""
    _interrupt_at_termination()
    try:
        from knouds_async._cli.commands import run_knouds

        return run_knouds(sys.argv[1:])
    except KeyboardInterrupt:  # while it was still being imported
        print("knouds: interrupted", file=sys.stderr)
        return 130
    except ImportError as missing:
        if not any(str(name).partition(".")[0] in _EXTRA for name in _missing_names(missing)):
            raise
        print("knouds: the command line is an optional extra: pip install 'knouds-async[cli]'", file=sys.stderr)
        return 1


def _interrupt_at_termination() -> None:
    """Make SIGTERM and SIGHUP end every command as Ctrl-C does; for process 1 of a container they would do nothing.

    Where Ctrl-C is ignored, as in a shell's background job, it is blocked instead: it still does nothing, but what
    handles it is there for the others.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(_: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)


def _missing_names(error: BaseException | None) -> list[str | None]:
    """Return the modules that could not be imported: that of an ImportError and those of its causes."""
    names = []
    while error is not None:
        names.append(error.name if isinstance(error, ImportError) else None)
        error = error.__cause__
    return names
