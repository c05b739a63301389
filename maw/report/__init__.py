"""What a run leaves behind: JSON, CSV and text files, and the summary on the console."""

from __future__ import annotations
