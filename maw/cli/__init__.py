"""The command line: flags, configuration files and commands."""
