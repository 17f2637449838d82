"""Run `knouds` as `python -m knouds_async.cli`."""

import sys

from knouds_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
