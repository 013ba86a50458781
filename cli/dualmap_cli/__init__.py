"""The `dualmap` command: everything a person or a script starts."""
