"""`python -m magnet_train` is the same as `magnet-train`."""

import sys

from magnet_train.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
