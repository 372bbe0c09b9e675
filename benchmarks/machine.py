"""The machine that a benchmark ran on, for the results' files."""

import os
import platform
from pathlib import Path


def machine() -> dict:
    """Processor, cores, memory and Python of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    flags = next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model or platform.processor(),
        "features": sorted({"avx2", "avx512f", "avx512_bf16", "amx_tile"}.intersection(flags)),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
    }
