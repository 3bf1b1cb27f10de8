"""Options of `python -m pipeline` that doit's tasks take, too."""

from __future__ import annotations

from pathlib import Path

from model_artifacts.cli.options import Option

CONFIG = Option(("--config",), "default: pipeline.yaml", type=Path, default=Path("pipeline.yaml"), metavar="FILE")
RELEASE_KEY = Option(("--key",), "sign with this private key on an elliptic curve: PEM, or pkcs11:…", metavar="KEY")
KEYLESS = Option(("--keyless",), "sign as the identity that CI's OIDC vouches for", action="store_true")
ALLOW_DIRTY = Option(("--allow-dirty",), "make the release although files differ from the commit", action="store_true")
PRUNE_DELETE = Option(("--delete",), "delete the files; without this they are only listed", action="store_true")
RELEASE_MODEL = Option(("--model",), "release this model alone, of a configuration of several", metavar="NAME")
ARTIFACTS = Option(("--artifacts",), "default: the configuration's `artifacts`", type=Path, metavar="FOLDER")


def subject_of(noun: str) -> Option:
    """Return the positional argument that names the subject of a command."""
    return Option(("subject",), f"the {noun}; `python -m pipeline plan` lists all", metavar="SUBJECT")
