"""Turn off what Flower, Ray and the model hub's client send home, update checks, and Flower's installing of packages.

Flower reads its variables when it is first imported, so an entry point imports this module before anything else. What
the caller has set already is kept. ``flwr`` itself, when typed in a shell, never imports this: set the variables there.
"""

from __future__ import annotations

import os

__all__ = ["QUIET_ENVIRONMENT"]

QUIET_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

for _name, _value in QUIET_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
