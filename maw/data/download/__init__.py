"""Published files: where they are, whether they are here, and how they are fetched and checked."""
