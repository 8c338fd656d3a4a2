"""The tokenize stage against its peers; the measuring is in ``tokenizing.py``.

Scripts in this folder find this file where they look for the standard library's module of
the same name, so whoever imports it gets that one.
"""

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
elsewhere = [path for path in sys.path if str(Path(path).resolve()) != HERE]
found, sys.path[:] = list(sys.path), elsewhere
sys.modules.pop("tokenize", None)
import tokenize  # noqa: E402, F401

sys.path[:] = found

if __name__ == "__main__":
    from tokenizing import main

    sys.exit(main())
