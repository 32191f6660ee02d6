"""Write the golden files of the current schema: ``PYTHONPATH=tests python -m golden.write``, once for each.

A file that exists is never overwritten: its bytes were sent by somebody, and must be understood for ever.
"""

from __future__ import annotations

import sys

from golden.examples import EXAMPLES, golden_file

from broker.codec import encode


def main() -> None:
    """Write what is not there yet."""
    for name, message in EXAMPLES.items():
        path = golden_file(name)
        path.parent.mkdir(exist_ok=True)
        try:
            with path.open("xb") as file:
                file.write(encode(message))
        except FileExistsError:
            sys.stderr.write(f"{path.name} is there already and stays as it is\n")


if __name__ == "__main__":
    main()
