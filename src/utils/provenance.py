"""Who made a result: date, program, libraries and machine, kept beside the settings.

It stands under `PROVENANCE` in every `config.json` and `training_config.json`. No stage refuses to
go on because of it. It holds a hash of the code that decides the numbers, so that a stage can say
that what stands there was made before that was changed.
"""

import io
import platform
import re
import shlex
import subprocess
import sys
import tokenize
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from utils.paths import hash_json

PROVENANCE = "provenance"
SECRETS = ("--es_password", "--es_api_key")
# below src/: what decides the numbers of an adapter, and those of an answer
TRAINING_CODE = ("encode.py", *(f"utils/{n}.py" for n in ("lora", "loss", "prompting", "training")))
ANSWERING_CODE = (
    "inference.py",
    *(f"utils/{n}.py" for n in ("lora", "merging", "metrics", "models", "prompting")),
)
PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def provenance() -> dict:
    """The date (UTC), command, git commit, code, versions and device of this run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "git_commit": _git_commit(),
        "code": {name: _code_hash(name) for name in sorted({*TRAINING_CODE, *ANSWERING_CODE})},
        "versions": dict(_versions()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def changed_code(made_by: dict, names: tuple[str, ...]) -> set[str]:
    """The files of `names` that are not as they were for the run whose provenance is `made_by`.

    A file that it says nothing of counts as unchanged.
    """
    before = made_by.get("code") if isinstance(made_by, dict) else None
    if not isinstance(before, dict):
        return set()
    return {name for name in names if before.get(name, _code_hash(name)) != _code_hash(name)}


@cache
def _code_hash(name: str) -> str:
    """A hash of the file `name` below src/, which comments and empty lines do not change."""
    text = (Path(__file__).parents[1] / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return hash_json([line.rstrip() for line in lines if line.strip()])


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
