"""`python -m lkv` is `lkv`."""

import sys

from lkv.cli import main

if __name__ == "__main__":  # prompts are built in processes that import this file
    sys.exit(main())
