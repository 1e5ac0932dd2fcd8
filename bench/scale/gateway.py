"""A gateway over pairs in a process of its own: prints its base URL and serves until SIGTERM.

python bench/scale/gateway.py <pairs> <batch> <compute ms>
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agentwire.gateway.limits import GatewayLimits
from agentwire.gateway.server import ServeOptions, serve
from scale.pairs import deployment

if __name__ == "__main__":
    pairs, batch, compute_ms = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    limits = GatewayLimits(requests=4096, requests_per_key=4096)
    asyncio.run(
        serve(
            deployment(pairs, batch, compute_ms, by_message=False),
            ServeOptions(port=0, limits=limits),
            ready=lambda url, models: print(url, flush=True),
        )
    )
