import pytest

from agentwire.chat.errors import HttpError
from agentwire.chat.handles import HANDLE, HandleStore
from agentwire.runtime.reply import KeptPayload
from agentwire.wire.messages import Channel


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(number: int = 0) -> KeptPayload:
    return KeptPayload("llama", "mistral", f"{number:032x}", Channel.SOFT, "", 256, 1.0)


def status(store: HandleStore, token: str, owner: str) -> int:
    with pytest.raises(HttpError) as error:
        store.get(token, owner)
    return error.value.status


def test_a_handle_is_text_that_cannot_be_guessed() -> None:
    store = HandleStore(Clock())
    handles = [store.add("ada", kept(), "bridge") for _ in range(100)]
    assert len({handle.token for handle in handles}) == 100
    assert all(len(handle.token) == 32 for handle in handles)
    assert HANDLE.findall(f"see {handles[0].text}.") == [handles[0].token]


def test_it_is_good_for_its_owner_alone_and_for_a_time() -> None:
    clock = Clock()
    store = HandleStore(clock, ttl_s=10)
    handle = store.add("ada", kept(), "bridge")
    assert store.get(handle.token, "ada") is handle
    assert status(store, handle.token, "bob") == 403
    assert status(store, "A" * 32, "ada") == 404
    clock.now = 10.0
    assert status(store, handle.token, "ada") == 404
    assert status(store, handle.token, "bob") == 404  # nobody learns that it was there
    assert len(store) == 0


def test_an_owner_with_too_many_loses_his_own_oldest() -> None:
    store = HandleStore(Clock(), most=5, most_of_one=2)
    other = store.add("bob", kept(), None)
    mine = [store.add("ada", kept(n), None) for n in range(4)]
    assert [status(store, handle.token, "ada") for handle in mine[:2]] == [404, 404]
    assert store.get(mine[2].token, "ada") and store.get(other.token, "bob")
    for n in range(5):
        store.add(f"owner{n}", kept(), None)
    assert len(store) == 5


def test_a_dropped_handle_is_gone() -> None:
    store = HandleStore(Clock())
    handle = store.add("ada", kept(), None)
    store.drop(handle.token)
    store.drop(handle.token)
    assert status(store, handle.token, "ada") == 404
