"""The exceptions of agentwire. Every message says what is wrong; its hint says what to do next.

``AgentwireError`` has three main subclasses:

* ``InputError``: the user's input is wrong or missing. The CLI prints the error as one line and
  exits with code 2.
* ``ProtocolError``: a peer (``RemoteProtocolError``) or this process (``LocalProtocolError``) broke
  the wire protocol. A remote error is answered with a Nack, or the message is dropped and counted;
  it never ends the process.
* ``RequestError``: the outcome of a request that ended without an answer.
"""

from __future__ import annotations

from enum import StrEnum


class AgentwireError(Exception):
    """Base class of agentwire's errors.

    Args:
        message: what is wrong, in one line.
        hint: the next step, in one line; shown after the message.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


# -- input ----------------------------------------------------------------------------------


class InputError(AgentwireError):
    """The user's input is wrong or missing (CLI exit code 2)."""


class ScenarioError(InputError):
    """A scenario, an agent file or a call's options are invalid."""


class ModelError(InputError):
    """A model is unknown, cannot be fetched, or does not match its fingerprint."""


class DataError(InputError):
    """A dataset is unknown, cannot be fetched, or contains an invalid row."""


class BridgeError(InputError):
    """A bridge is missing, corrupt, or made for other models."""


class MissingBridge(BridgeError):
    """No bridge has this name; it can be trained."""


class DeviceError(InputError):
    """A device that the scenario names does not exist."""


class DownloadError(InputError):
    """A download failed or has a wrong checksum; nothing was kept."""


class CacheError(InputError):
    """The cache folder cannot be used."""


# -- the wire -------------------------------------------------------------------------------


class ProtocolError(AgentwireError):
    """The wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """This process tried to send something that the protocol does not allow: a local bug."""


class NackCode(StrEnum):
    """Why a message or a request was refused (docs/protocol.md explains each code)."""

    VERSION = "version"  # unsupported protocol version
    MALFORMED = "malformed"  # frames that do not decode
    TOO_LARGE = "too_large"  # over a limit, or a text longer than its reader reads
    CHECKSUM = "checksum"  # the body does not match the header's checksum
    UNAUTHORIZED = "unauthorized"  # the peer is not authenticated
    STALE_EPOCH = "stale_epoch"  # from an earlier incarnation
    UNKNOWN_WIRE = "unknown_wire"
    UNKNOWN_TASK = "unknown_task"
    BRIDGE_MISMATCH = "bridge_mismatch"  # models, layer, M, d or weights differ
    PROMPT_MISMATCH = "prompt_mismatch"  # the bridge was not trained for this prompt
    BAD_PAYLOAD = "bad_payload"  # wrong size or dtype, not finite, or RMS outside the card's range
    NO_BRIDGE = "no_bridge"  # soft tokens requested on a wire without a bridge
    OVERLOADED = "overloaded"  # too much is outstanding; retry later
    DEADLINE = "deadline"  # the row's time is up
    CANCELLED = "cancelled"
    AGENT_DOWN = "agent_down"  # the agent died too often and is not restarted
    DEAD_LETTER = "dead_letter"  # in flight at two deaths of an agent
    MODEL_ERROR = "model_error"  # the model raised an exception on this batch
    UNSUPPORTED = "unsupported"  # the agent or bridge does not support this (e.g. free text)
    CLOSING = "closing"  # the peer is shutting down
    EXPIRED = "expired"  # the kept payload no longer exists


class RemoteProtocolError(ProtocolError):
    """A peer sent something that the protocol does not allow. Never fatal.

    Args:
        code: of the Nack that answers it.
        message: what was wrong.
    """

    def __init__(self, code: NackCode, message: str) -> None:
        super().__init__(message)
        self.code = code


# -- the outcome of a request ---------------------------------------------------------------


class RequestError(AgentwireError):
    """A request ended without an answer.

    Args:
        code: the cause.
        message: what happened, with the request id if there is one.
        hint: the next step.
        retry_after_s: for ``overloaded``: when to retry, in seconds.
    """

    def __init__(
        self,
        code: NackCode,
        message: str,
        *,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retry_after_s = retry_after_s


class BusClosed(AgentwireError):
    """The bus is closed: nothing can be sent or received any more."""
