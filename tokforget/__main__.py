"""`python -m tokforget` is the shell command `tokforget`."""

import sys

from tokforget.cli.main import main


sys.exit(main())
