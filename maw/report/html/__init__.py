"""report.html: a run as one self-contained page, with the answer first."""

from __future__ import annotations
