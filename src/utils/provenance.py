"""Who made a result: date, program, libraries and machine, kept beside the settings.

It is under `PROVENANCE` in every `config.json` and `training_config.json`. No stage refuses to go
on because of it.
"""

import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

PROVENANCE = "provenance"
SECRETS = ("--es_password", "--es_api_key")
PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def provenance() -> dict:
    """The date (UTC), command, git commit, versions and device of this run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "git_commit": _git_commit(),
        "versions": dict(_versions()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


@cache  # reading them takes longer than saving an adapter
def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _command() -> str:
    """The command line, without any password or key in it."""
    words = [Path(sys.argv[0]).name]
    for before, word in zip(sys.argv, sys.argv[1:], strict=False):
        flag, given, _ = word.partition("=")
        if before in SECRETS:
            word = "..."
        elif flag in SECRETS and given:
            word = f"{flag}=..."
        words.append(re.sub(r"//.+@", "//...@", word))
    return shlex.join(words)


@cache
def _git_commit() -> str | None:
    """The commit of the program, with "-dirty" where files were changed since; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
