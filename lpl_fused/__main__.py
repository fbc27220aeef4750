"""`python -m lpl_fused`: the same as the `lpl-fused` command."""

import sys

from .cli import main

sys.exit(main())
