"""The ``--device`` option."""

from __future__ import annotations

import re

from agentwire.errors import DeviceError


def check_device(device: str | None) -> str | None:
    """The device as given.

    Raises:
        DeviceError: not the name of a device.
    """
    if device is not None and not re.fullmatch(r"auto|cpu|cuda:\d+", device):
        raise DeviceError(
            f"--device {device}: there is no such kind of device.",
            hint="Devices are auto, cpu, cuda:0, cuda:1, …",
        )
    return device
