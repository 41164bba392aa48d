"""The `trikv` command and its subcommands."""
