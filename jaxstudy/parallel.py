"""How one program uses many cores and devices."""

import os


def usable_cores() -> int:
    """How many processor cores this process may use; all, where no system says it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
