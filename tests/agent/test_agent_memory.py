"""A device that runs out of memory: smaller batches, then an error, and larger batches again."""

from typing import Any

import pytest
from test_agent_worker import Bench, encode, ids, sender

from agentwire.agent.compute import GROW_AFTER, is_out_of_memory
from agentwire.errors import NackCode
from agentwire.spec.agent import FakeModel
from agentwire.wire.messages import Nack, Soft


def count_batches(bench: Bench) -> list[int]:
    """Records the sizes of the batches from now on."""
    sizes: list[int] = []
    real = bench.backend.encode

    def counted(texts: Any, bridge: str) -> Any:
        sizes.append(len(texts))
        return real(texts, bridge)

    bench.backend.encode = counted  # type: ignore[method-assign]
    return sizes


def test_batches_shrink_when_memory_is_full_and_grow_again() -> None:
    bench = sender(max_batch=16, credit=200, fake=FakeModel(memory_rows=4))
    sizes = count_batches(bench)
    for first in range(0, 192, 16):
        bench.handle(encode([f"row {n}" for n in range(first, first + 16)], first=first))
        bench.run()
    assert sorted(i for message in bench.take(Soft) for i in ids(message)) == list(range(192))
    assert not bench.take(Nack)
    assert sizes[:3] == [16, 8, 4]
    assert sizes[2 : 2 + GROW_AFTER] == [4] * GROW_AFTER  # the limit holds until enough have fitted
    assert sizes[2 + GROW_AFTER] == 8  # then it grows


def test_a_row_that_does_not_fit_alone_is_refused_alone() -> None:
    bench = sender(fake=FakeModel(memory_on="huge"))
    bench.handle(encode(["a", "huge", "b", "c"]))
    bench.run()
    (refused,) = bench.take(Nack)
    assert ids(refused) == [1] and refused.code is NackCode.MODEL_ERROR
    assert "out of memory" in refused.reason
    assert sorted(i for message in bench.take(Soft) for i in ids(message)) == [0, 2, 3]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_how_engines_report_out_of_memory(error: Exception, full: bool) -> None:
    assert is_out_of_memory(error) is full


def test_torch_reports_it_with_its_own_class() -> None:
    torch = pytest.importorskip("torch", reason="`make test` installs torch")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
