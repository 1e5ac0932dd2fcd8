from typing import Literal

import pytest

from agentwire.errors import NackCode
from agentwire.runtime.request_errors import AfterNack, after_nack
from agentwire.wire.messages import Channel

SOFT_AND_TEXT_POLICY: dict[NackCode, AfterNack] = {
    NackCode.VERSION: AfterNack.FAIL,
    NackCode.EXPIRED: AfterNack.FAIL,
    NackCode.MALFORMED: AfterNack.AS_TEXT,
    NackCode.TOO_LARGE: AfterNack.FAIL,
    NackCode.CHECKSUM: AfterNack.AS_TEXT,
    NackCode.UNAUTHORIZED: AfterNack.FAIL,
    NackCode.STALE_EPOCH: AfterNack.LATER,
    NackCode.UNKNOWN_WIRE: AfterNack.FAIL,
    NackCode.UNKNOWN_TASK: AfterNack.LATER,
    NackCode.BRIDGE_MISMATCH: AfterNack.AS_TEXT,
    NackCode.PROMPT_MISMATCH: AfterNack.AS_TEXT,
    NackCode.BAD_PAYLOAD: AfterNack.AS_TEXT,
    NackCode.NO_BRIDGE: AfterNack.AS_TEXT,
    NackCode.OVERLOADED: AfterNack.LATER,
    NackCode.DEADLINE: AfterNack.FAIL,
    NackCode.CANCELLED: AfterNack.FAIL,
    NackCode.AGENT_DOWN: AfterNack.FAIL,
    NackCode.DEAD_LETTER: AfterNack.FAIL,
    NackCode.MODEL_ERROR: AfterNack.AS_TEXT,
    NackCode.UNSUPPORTED: AfterNack.AS_TEXT,
    NackCode.CLOSING: AfterNack.LATER,
}


@pytest.mark.parametrize("code", list(NackCode))
@pytest.mark.parametrize("channel", list(Channel))
@pytest.mark.parametrize("policy", ["text", "error"])
def test_decision_after_a_nack(
    code: NackCode, channel: Channel, policy: Literal["text", "error"]
) -> None:
    expected = SOFT_AND_TEXT_POLICY[code]
    if expected is AfterNack.AS_TEXT and (channel is Channel.TEXT or policy == "error"):
        expected = AfterNack.FAIL
    assert after_nack(code, channel=channel, policy=policy) is expected
