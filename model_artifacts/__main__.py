"""`python -m model_artifacts`, where the console script is not on the PATH."""

import sys

from model_artifacts.cli.main import main

sys.exit(main())
