import pytest

from agentwire.agent.launching.failure import decode_error, encode_error
from agentwire.errors import BridgeError, DeviceError, InputError, ModelError


@pytest.mark.parametrize("kind", [InputError, BridgeError, DeviceError, ModelError])
def test_an_error_survives_encoding(kind: type[InputError]) -> None:
    back = decode_error(encode_error(kind("it is „wrong“.", hint="Do that.")))
    assert type(back) is kind
    assert (back.message, back.hint) == ("it is „wrong“.", "Do that.")


@pytest.mark.parametrize("letter", ["x", "ß", "🦙", '"', "\n"])
def test_long_errors_are_shortened_to_fit_a_goodbye(letter: str) -> None:
    text = encode_error(InputError(letter * 5000, hint=letter * 5000))
    assert len(text.encode()) <= 512
    back = decode_error(text)
    assert back is not None and back.message.startswith(letter * 20)


@pytest.mark.parametrize(
    "reason",
    ["the agent ends", "", "input-error:", "input-error:{}", "input-error:[1]", "input-error:[[["],
)
def test_other_reasons_hold_no_error(reason: str) -> None:
    assert decode_error(reason) is None


@pytest.mark.parametrize(
    "name", ["RequestError", "json", "AgentwireError", "NoSuchError", "annotations"]
)
def test_only_input_errors_are_decoded(name: str) -> None:
    assert type(decode_error(f'input-error:["{name}", "message", ""]')) is InputError
