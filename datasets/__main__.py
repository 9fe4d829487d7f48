"""``python -m datasets``: the door to `harness.data_sets`."""

from __future__ import annotations

import sys

from harness.data_sets import main

if __name__ == "__main__":
    sys.exit(main())
