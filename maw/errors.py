"""What a user can mend: every message is complete in itself and says what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class MAWError(Exception):
    """Anything the package refuses or cannot do that its user can mend; `str` is one line."""


class ConfigError(MAWError):
    """A configuration that cannot run.

    Args:
        problems: every mistake found, one line each.
    """

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DataError(MAWError):
    """Data that is missing or malformed; the message names the file and line."""


class NotFiniteError(MAWError):
    """A loss, gradient, embedding or score that is NaN or infinite: what training that diverges ends in."""


class DamagedError(MAWError):
    """A file of the program's own that is not as it was written; the message names it."""


class ModelError(MAWError):
    """A model that cannot be found, loaded or given depth attention."""
