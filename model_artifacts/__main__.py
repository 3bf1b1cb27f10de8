"""`python -m model_artifacts`: the command line `model-artifacts`, where its script is not on the PATH."""

import os
import sys

if not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109 - pathlib comes from the path
    del sys.path[0]  # Python puts the current folder there, whose files would take the place of any package

from model_artifacts.cli.main import main

sys.exit(main())
