"""`python -m lkv` is `lkv`."""

import sys

from lkv.cli import main

sys.exit(main())
