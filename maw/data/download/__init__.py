"""Published files: addresses, presence, download and checks."""
