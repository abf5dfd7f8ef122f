"""``python -m distilbeam`` is the command ``distilbeam``."""

import sys

from distilbeam.pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
