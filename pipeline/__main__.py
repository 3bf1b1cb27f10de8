"""`python -m pipeline COMMAND`: the command of every doit action, and of people who paste it."""

import os
import sys

from pipeline.cli.main import run_and_end
from pipeline.system.processes import PARENT_VARIABLE, end_with

if __name__ == "__main__":
    if parent := os.environ.get(PARENT_VARIABLE):  # the doit that started this
        end_with(int(parent))
    run_and_end(sys.argv[1:])
