import pytest

from agentwire.agent.launching.failure import describe, parse
from agentwire.errors import BridgeError, DeviceError, InputError, ModelError


@pytest.mark.parametrize("kind", [InputError, BridgeError, DeviceError, ModelError])
def test_an_error_comes_back_as_it_was(kind: type[InputError]) -> None:
    back = parse(describe(kind("it is „wrong“.", hint="Do that.")))
    assert type(back) is kind
    assert (back.message, back.hint) == ("it is „wrong“.", "Do that.")


@pytest.mark.parametrize("letter", ["x", "ß", "🦙", '"', "\n"])
def test_long_errors_are_cut_to_what_a_goodbye_carries(letter: str) -> None:
    text = describe(InputError(letter * 5000, hint=letter * 5000))
    assert len(text.encode()) <= 512
    back = parse(text)
    assert back is not None and back.message.startswith(letter * 20)


@pytest.mark.parametrize(
    "reason",
    ["the agent ends", "", "input-error:", "input-error:{}", "input-error:[1]", "input-error:[[["],
)
def test_other_reasons_are_no_errors(reason: str) -> None:
    assert parse(reason) is None


@pytest.mark.parametrize(
    "name", ["RequestError", "json", "AgentwireError", "NoSuchError", "annotations"]
)
def test_only_input_errors_can_be_named(name: str) -> None:
    assert type(parse(f'input-error:["{name}", "message", ""]')) is InputError
