"""`python -m lkv` is `lkv`. What takes time to import is imported after Ctrl-C is looked after."""

import sys

from lkv.cli.signals import leave_at_once


def main() -> int:
    leave_at_once()
    from lkv.cli.main import main

    return main()


if __name__ == "__main__":  # prompts are built in processes that import this file
    sys.exit(main())
