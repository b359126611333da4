"""Who has the event loop, and when."""

from pixstorefs.fuse.event_loop import Turns


def test_work_for_idle_moments() -> None:
    """The newest first: it is what the client waits for next. What waited too long is forgotten."""
    turns = Turns()
    done: list[int] = []
    for number in range(20):
        turns.when_idle(lambda number=number: done.append(number))
    while turns.do_idle_work():
        pass
    assert done == list(range(19, 11, -1))
    assert not turns.do_idle_work()
