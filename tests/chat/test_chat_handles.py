import pytest

from agentwire.chat.errors import ChatError
from agentwire.chat.handles import HANDLE, HandleStore
from agentwire.runtime.reply import KeptPayload
from agentwire.wire.messages import Channel

NOT_FOUND, FORBIDDEN = "handle_not_found", "handle_forbidden"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(number: int = 0) -> KeptPayload:
    return KeptPayload("llama", "mistral", f"{number:032x}", Channel.SOFT, "", 256, 1.0)


def refusal(store: HandleStore, token: str, owner: str) -> str | None:
    with pytest.raises(ChatError) as error:
        store.get(token, owner)
    return error.value.code


def test_handles_are_random_text() -> None:
    store = HandleStore(Clock())
    handles = [store.add("ada", kept()) for _ in range(100)]
    assert len({handle.token for handle in handles}) == 100
    assert all(len(handle.token) == 32 for handle in handles)
    assert HANDLE.findall(f"see {handles[0].text}.") == [handles[0].token]


def test_handle_is_valid_for_its_owner_until_it_expires() -> None:
    clock = Clock()
    store = HandleStore(clock, ttl_s=10)
    handle = store.add("ada", kept())
    assert store.get(handle.token, "ada") is handle
    assert refusal(store, handle.token, "bob") == FORBIDDEN
    assert refusal(store, "A" * 32, "ada") == NOT_FOUND
    clock.now = 10.0
    assert refusal(store, handle.token, "ada") == NOT_FOUND
    assert refusal(store, handle.token, "bob") == NOT_FOUND  # does not reveal that it existed
    assert len(store) == 0


def test_owner_at_the_limit_loses_their_oldest_handle() -> None:
    store = HandleStore(Clock(), max_handles=5, max_per_owner=2)
    other = store.add("bob", kept())
    mine = [store.add("ada", kept(n)) for n in range(4)]
    assert [refusal(store, handle.token, "ada") for handle in mine[:2]] == [NOT_FOUND] * 2
    assert store.get(mine[2].token, "ada") and store.get(other.token, "bob")
    for n in range(5):
        store.add(f"owner{n}", kept())
    assert len(store) == 5


def test_owner_with_the_most_handles_makes_room_for_others() -> None:
    store = HandleStore(Clock(), max_handles=4, max_per_owner=3)
    mine = store.add("ada", kept())
    for n in range(20):
        store.add("bob", kept(n))
        store.add("eve", kept(n))
    assert store.get(mine.token, "ada") and len(store) == 4


def test_dropped_handle_is_not_found() -> None:
    store = HandleStore(Clock())
    handle = store.add("ada", kept())
    store.drop(handle.token)
    store.drop(handle.token)
    assert refusal(store, handle.token, "ada") == NOT_FOUND
