"""``python -m varemb.data criteo SOURCE --out FOLDER``: encode a log that is larger than memory.

``--data-dir FOLDER`` of the command line, or `load_criteo(FOLDER)`, then reads it from the disk.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from varemb.data.avazu import AVAZU
from varemb.data.criteo import CRITEO
from varemb.data.encoding import encode_log
from varemb.data.vocabulary import Vocabulary

FORMATS = {form.name: form for form in (CRITEO, AVAZU)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    It is 2, and one line is printed, for an error of the user, and 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m varemb.data", description=__doc__)
    parser.add_argument("data", choices=sorted(FORMATS), help="the data set")
    parser.add_argument("source", type=Path, help="its file, or a folder with it")
    parser.add_argument("--out", type=Path, required=True, help="the encoded folder to make")
    parser.add_argument("--min-count", type=int, help="occurrences a value needs for its own id")
    parser.add_argument(
        "--vocabulary", type=Path, help="vocabulary.safetensors of another encoded folder"
    )
    options = parser.parse_args(argv)
    try:
        vocabulary = Vocabulary.load(options.vocabulary) if options.vocabulary else None
        data = encode_log(
            FORMATS[options.data], options.source, options.out, options.min_count, vocabulary
        )
    except KeyboardInterrupt:
        print(f"varemb: stopped; {options.out} was not made", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"varemb: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out}: {len(data):,} rows, {len(data.field_names)} fields, "
        f"{sum(data.cardinalities):,} ids"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
