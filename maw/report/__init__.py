"""Reports of a run: JSON, CSV, text and HTML files, figures, and the summary on the console."""

from __future__ import annotations
