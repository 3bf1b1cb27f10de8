"""`python -m model_artifacts`: the command line `model-artifacts`, where its script is not on the PATH."""

import sys

from model_artifacts.cli.main import main

sys.exit(main())
