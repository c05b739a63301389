"""What a user can mend: every message is complete in itself and says what was wrong, where, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence


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


class ModelError(MAWError):
    """A model that cannot be found, loaded or given depth attention."""


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """Puts the place in front of whatever turns out not to be finite inside the block."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{where}: {error}") from error
