"""`python -m flow_grpo` is `flow-grpo`."""

import sys

from flow_grpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
