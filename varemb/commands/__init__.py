"""The larger commands of the command line, one file each; `varemb/cli.py` has the others."""
