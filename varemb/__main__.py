"""`python -m varemb` is the command `varemb`."""

import sys

from varemb.cli import main

if __name__ == "__main__":
    sys.exit(main())
