"""Sphinx reads this: `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import keys  # noqa: E402

project = "easyllm"
copyright = "the easyllm authors"
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "easyllm"
html_show_sphinx = False
html_copy_source = False
smartquotes = False

# written before Sphinx looks for pages, and only where it has changed
GENERATED = HERE / "keys.md"
if not GENERATED.exists() or GENERATED.read_text("utf-8") != keys.page():
    GENERATED.write_text(keys.page(), "utf-8")
