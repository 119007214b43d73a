"""Sphinx: ``sphinx-build -W docs docs/_build`` with the extra ``docs`` installed."""

from psgrad.version import __version__

project = "psgrad"
author = "The psgrad developers"
project_copyright = author
release = version = __version__
extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "alabaster"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
add_module_names = False
