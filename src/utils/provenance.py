"""Who made a result: `PROVENANCE` in every `config.json` and `training_config.json`.

No stage refuses to go on because of it.
"""

import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import torch

PROVENANCE = "provenance"
SECRETS = ("--es_password", "--es_api_key")
PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def provenance() -> dict:
    """The date (UTC), command, git commit, versions and device of this run."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "command": _command(), **_program()}


@cache  # it takes longer than saving an adapter
def _program() -> dict:
    """What is the same for the whole run; the commit has "-dirty" if files were changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    where = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    commit = done.stdout.strip() if done else ""
    return {"git_commit": commit or None, "versions": versions, "device": device}


def _command() -> str:
    """The command line, without any password or key in it."""
    words = [Path(sys.argv[0]).name]
    for before, word in pairwise(sys.argv):
        hidden = "..." if before in SECRETS else re.sub(r"//.+@", "//...@", word)
        flag = word.partition("=")[0]
        words.append(f"{flag}=..." if flag in SECRETS and flag != word else hidden)
    return shlex.join(words)
