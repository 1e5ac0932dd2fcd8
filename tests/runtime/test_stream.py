import pytest

from agentwire.errors import NackCode, RequestError
from agentwire.runtime.stream import AnswerStream


def test_pieces_in_order_are_passed_through() -> None:
    stream = AnswerStream()
    assert [stream.add(0, "Grüße"), stream.add(7, ", Welt")] == ["Grüße", ", Welt"]
    assert stream.finish("Grüße, Welt!") == "!"


def test_repeated_pieces_are_yielded_once() -> None:
    stream = AnswerStream()
    stream.add(0, "one two")
    assert [stream.add(0, "one"), stream.add(3, " two three")] == ["", " three"]
    assert stream.finish("one two three") == ""


def test_pieces_after_a_gap_wait_for_the_whole_answer() -> None:
    stream = AnswerStream()
    stream.add(0, "one")
    assert stream.add(7, " three") == ""
    assert stream.finish("one two three") == " two three"


@pytest.mark.parametrize("answer", ["one too", "on", "two"])
def test_an_answer_that_contradicts_the_stream_is_an_error(answer: str) -> None:
    stream = AnswerStream()
    stream.add(0, "one two")
    with pytest.raises(RequestError) as error:
        stream.finish(answer)
    assert error.value.code is NackCode.MODEL_ERROR
