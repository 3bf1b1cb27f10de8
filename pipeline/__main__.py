"""`python -m pipeline COMMAND`: the command of every doit action, and of people who paste it."""

import os
import sys

from model_artifacts.cli.process import end_like_ctrl_c, ignore_further_signals
from pipeline.cli.main import main
from pipeline.system.processes import PARENT_VARIABLE, end_with

if __name__ == "__main__":
    end_like_ctrl_c()
    if parent := os.environ.get(PARENT_VARIABLE):  # the doit that started this
        end_with(int(parent))
    status = main()
    ignore_further_signals()
    sys.exit(status)
