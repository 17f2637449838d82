"""Run `knouds` as `python -m knouds_async`."""

import sys

from knouds_async._cli import main

if __name__ == "__main__":
    sys.exit(main())
