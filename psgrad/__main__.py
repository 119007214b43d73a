"""``python -m psgrad``: what ``psgrad run`` starts on each rank."""

import os
import sys

if sys.path and sys.path[0] in ("", os.getcwd()) and not getattr(sys.flags, "safe_path", False):
    # Python looks in the user's folder first: a json.py of theirs must not become psgrad's.
    del sys.path[0]

from psgrad.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
