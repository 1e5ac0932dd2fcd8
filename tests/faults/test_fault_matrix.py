"""The short form of the fault matrix: every fault once, with real processes and real sockets.

The faults run concurrently, since they wait most of the time. ``make chaos`` runs many rounds of
each, one after the other.
"""

import asyncio
from collections.abc import Mapping

import pytest
from chaos.matrix import names, run_runner, run_together
from chaos.rig import Answers, MemoryJournal, Tally, answers_without_faults

from agentwire.errors import NackCode, RequestError

pytestmark = pytest.mark.integration
SEED = 7
AT_ONCE = 4


@pytest.fixture(scope="module")
def expected() -> Answers:
    return asyncio.run(answers_without_faults())


@pytest.fixture(scope="module")
def tallies(expected: Answers) -> Mapping[str, Tally | BaseException]:
    return asyncio.run(run_together(1, SEED, expected, AT_ONCE))


@pytest.mark.parametrize("fault", names())
def test_nothing_is_lost_duplicated_or_wrong(
    fault: str, tallies: Mapping[str, Tally | BaseException]
) -> None:
    tally = tallies[fault]
    if isinstance(tally, BaseException):
        raise tally
    assert tally.requests >= 48
    assert tally.clean, tally


async def test_a_killed_runner_leaves_no_agents_and_names_unfinished_requests(
    expected: Answers,
) -> None:
    tally = await run_runner(1, SEED, expected)
    assert tally.clean, tally


async def test_the_tally_detects_failures(expected: Answers) -> None:
    """A tally that cannot fail proves nothing."""
    text = next(iter(expected))
    journal, tally = MemoryJournal(), Tally()
    journal.write("admitted", request_ids=["a", "b"])
    journal.write("finished", request_ids=["a"])
    journal.write("finished", request_ids=["a"])
    late = RequestError(NackCode.DEADLINE, "late")
    tally.count(journal, [text, text], [None, late], expected)
    assert (tally.lost, tally.duplicated, tally.wrong) == (2, 1, 1)
    tally.count(journal, [text], [late], expected, frozenset({NackCode.DEADLINE}))
    assert tally.errors == {"deadline": 1} and tally.wrong == 1
