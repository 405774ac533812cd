"""The one folder outside a checkout where minillama keeps things."""

import os
from pathlib import Path


def home() -> Path:
    """MINILLAMA_HOME, or ~/.cache/minillama."""
    chosen = os.environ.get("MINILLAMA_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "minillama"
