"""`python -m d2llm.cli`: the command line, installed or not."""

import sys

from d2llm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
