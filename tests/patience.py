"""Time limits of tests. They end a test that hangs; they never measure.

Set AGENTWIRE_TEST_PATIENCE to a factor for a machine that needs longer, such as 4.
"""

import os

FACTOR = float(os.environ.get("AGENTWIRE_TEST_PATIENCE", "1"))


def patience(seconds: float) -> float:
    """This limit on this machine."""
    return seconds * FACTOR


TEST_S = patience(480)
COMMAND_S = patience(240)
"""For a process that a test starts."""
EVENT_S = patience(60)
"""For something that a test waits for."""
