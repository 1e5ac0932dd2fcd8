"""The exceptions of agentwire: one small tree, and every message says what to do next.

``AgentwireError`` splits in three:

* ``InputError``: what the user gave is wrong or missing. The CLI prints it as one line and
  exits with code 2.
* ``ProtocolError``: a peer (``RemoteProtocolError``) or this process (``LocalProtocolError``)
  broke the wire protocol. Remote errors are answered with a Nack or dropped and counted; they
  never end the process.
* ``RequestError``: the terminal outcome of one request that has no answer.
"""

from __future__ import annotations

from enum import StrEnum


class AgentwireError(Exception):
    """Base of every error that agentwire raises on purpose.

    Args:
        message: what is wrong, in one line.
        hint: what to do next, in one line; shown after the message.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


# -- what the user gave ---------------------------------------------------------------------


class InputError(AgentwireError):
    """Something that the user gave is wrong or missing (CLI exit code 2)."""


class ScenarioError(InputError):
    """A scenario or agent file cannot be read, or says something impossible."""


class ModelError(InputError):
    """A model is unknown, cannot be fetched, or is not what its name promises."""


class DataError(InputError):
    """A dataset is unknown, cannot be fetched, or holds a bad row."""


class BridgeError(InputError):
    """A bridge is missing, corrupt, or made for something else."""


class MissingBridge(BridgeError):
    """There is no bridge of that name here: training makes it."""


class DeviceError(InputError):
    """A device that the scenario names is not there."""


class DownloadError(InputError):
    """A download failed or its checksum is wrong; nothing of it was kept."""


class CacheError(InputError):
    """The cache folder cannot be used."""


# -- the wire -------------------------------------------------------------------------------


class ProtocolError(AgentwireError):
    """The wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """This process tried to send what the protocol does not allow: a bug on this side."""


class NackCode(StrEnum):
    """Why a message or a request was refused (docs/protocol.md lists each one)."""

    VERSION = "version"  # protocol version not spoken here
    MALFORMED = "malformed"  # frames that do not decode
    TOO_LARGE = "too_large"  # over a limit of the codec
    CHECKSUM = "checksum"  # body does not match the header's checksum
    UNAUTHORIZED = "unauthorized"  # peer is not who it must be
    STALE_EPOCH = "stale_epoch"  # message of an earlier incarnation
    UNKNOWN_WIRE = "unknown_wire"
    UNKNOWN_TASK = "unknown_task"
    BRIDGE_MISMATCH = "bridge_mismatch"  # other models, layer, M, d or weights than agreed
    PROMPT_MISMATCH = "prompt_mismatch"  # bridge is not trained for this prompt
    BAD_PAYLOAD = "bad_payload"  # size, dtype, not finite, or RMS out of the card's range
    NO_BRIDGE = "no_bridge"  # soft tokens asked for on a wire without a bridge
    OVERLOADED = "overloaded"  # admission refused: retry later
    DEADLINE = "deadline"  # the row's time was up
    CANCELLED = "cancelled"
    AGENT_DOWN = "agent_down"  # restart budget spent
    DEAD_LETTER = "dead_letter"  # the request killed its agent twice
    MODEL_ERROR = "model_error"  # the model raised on this batch
    UNSUPPORTED = "unsupported"  # this agent cannot do that (e.g. generate)
    CLOSING = "closing"  # peer is shutting down
    EXPIRED = "expired"  # what was kept is no longer there


class RemoteProtocolError(ProtocolError):
    """A peer sent what the protocol does not allow. Never trusted, never fatal.

    Args:
        code: the Nack code that answers it.
        message: what was wrong with it.
    """

    def __init__(self, code: NackCode, message: str) -> None:
        super().__init__(message)
        self.code = code


# -- the outcome of a request ---------------------------------------------------------------


class RequestError(AgentwireError):
    """A request ended without an answer. ``code`` names the cause.

    Args:
        code: the cause, as on the wire.
        message: what happened, with the request id where there is one.
        hint: what to do next.
        retry_after_s: for ``overloaded``: when to ask again, in seconds.
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
    """The bus was closed, so nothing can be sent or received any more."""
