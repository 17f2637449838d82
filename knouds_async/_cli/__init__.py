"""The command line, `knouds`: the extra `cli`; nothing else in the package imports it.

Only this package prints: what a program reads goes to stdout, messages and progress to stderr.
"""

import sys

_EXTRA = ("cyclopts", "rich")


def main() -> int:
    """Run `knouds` with the arguments of this process and return its exit code."""
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


def _missing_names(error: BaseException | None) -> list[str | None]:
    """Return the modules that could not be imported: that of an ImportError and those of its causes."""
    names = []
    while error is not None:
        names.append(error.name if isinstance(error, ImportError) else None)
        error = error.__cause__
    return names
