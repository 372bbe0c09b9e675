"""The folder that `data/`, `data_aug/`, `offline/` and `output/` are in.

It is found from this file's place, so nothing needs editing. To keep results elsewhere
(a scratch disk, a test's temporary folder), set the environment variable `PRAG_ROOT`.
"""

import os
from pathlib import Path

ROOT_DIR = Path(os.environ.get("PRAG_ROOT") or Path(__file__).parents[1]).resolve()
