from agentwire.agent.launching.limits import RestartBudget, RestartPolicy


def test_backs_off_then_gives_up() -> None:
    budget = RestartBudget(RestartPolicy(restarts=3, window_s=60, backoff_s=(0.2, 1.0, 5.0)))
    assert [budget.take(now) for now in (0.0, 1.0, 2.0, 3.0)] == [0.2, 1.0, 5.0, None]


def test_restarts_outside_the_window_do_not_count() -> None:
    budget = RestartBudget(RestartPolicy(restarts=2, window_s=10, backoff_s=(0.2, 1.0)))
    assert budget.take(0.0) == 0.2
    assert budget.take(5.0) == 1.0
    assert budget.take(10.5) == 1.0  # the first has left the window
    assert budget.take(11.0) is None
    assert budget.take(100.0) == 0.2


def test_the_last_backoff_repeats() -> None:
    budget = RestartBudget(RestartPolicy(restarts=4, window_s=60, backoff_s=(0.1,)))
    assert [budget.take(float(i)) for i in range(5)] == [0.1, 0.1, 0.1, 0.1, None]


def test_no_restarts_at_all() -> None:
    assert RestartBudget(RestartPolicy(restarts=0)).take(0.0) is None


def test_a_refused_restart_does_not_count() -> None:
    budget = RestartBudget(RestartPolicy(restarts=1, window_s=10, backoff_s=()))
    assert budget.take(0.0) == 0.0
    assert budget.take(9.0) is None
    assert budget.take(10.5) == 0.0  # only the restart at 0.0 counted
