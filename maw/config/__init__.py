"""`Tier1Config`: every setting, its rules, presets, and the table of methods."""
