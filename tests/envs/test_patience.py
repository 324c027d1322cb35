"""How long a world is waited for, in this process; tests/faults has whole runs in worlds that hang."""

import signal
import threading
import time

import pytest

from envs.errors import NoAnswer, WorldError, failed
from envs.patience import INTERRUPTS, Patience


class World:
    """Its step is whatever is given."""

    def __init__(self, step):
        self.step = step

    def reset(self):
        return "reset"

    def close(self):
        return "closed"


def nobody(error):
    raise AssertionError("given up")


def test_without_a_limit_the_world_is_as_it_was():
    def step():
        return 1

    world, before = World(step), threading.active_count()
    with Patience(0, "W") as patience:
        patience.watch(world, nobody)
        assert world.step is step and vars(world) == {"step": step}
        assert threading.active_count() == before


def test_answers_and_errors_pass_and_all_is_as_before():
    def step(action):
        if action == 3:
            raise KeyError("its own")
        return action + 1

    handler, threads = signal.getsignal(INTERRUPTS), threading.active_count()
    world = World(step)
    with Patience(5, "W") as patience:
        patience.watch(world, nobody)
        assert [world.step(n) for n in range(3)] == [1, 2, 3] and world.reset() == "reset"
        with pytest.raises(KeyError, match="its own"):
            world.step(3)
        assert world.step(4) == 5 and world.close() == "closed"
    assert (signal.getsignal(INTERRUPTS), threading.active_count()) == (handler, threads)


def test_what_takes_too_long_is_interrupted_once_and_the_next_call_is_timed_anew():
    world = World(time.sleep)
    with Patience(0.3, "W") as patience:
        patience.watch(world, nobody)
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(WorldError, match=r"^env = 'W': did not answer within 0\.3 s$") as stopped:
                world.step(60)
            assert 0.25 < time.monotonic() - began < 5 and isinstance(stopped.value.__cause__, NoAnswer)
            world.step(0.1)


def test_time_between_calls_does_not_count():
    world = World(time.sleep)
    with Patience(0.3, "W") as patience:
        patience.watch(world, nobody)
        for _ in range(4):
            world.step(0.1)
            time.sleep(0.5)  # learning


def test_the_sentence_names_the_environment_and_where_it_hung():
    try:
        raise NoAnswer("within 60 s")
    except NoAnswer as error:
        said = str(failed("W", 3, "at step 7", error))
    assert said.startswith("env = 'W': environment 3 did not answer within 60 s (test_patience.py, line ")
    assert said.endswith(") at step 7")


def test_outside_the_main_thread_nothing_is_watched():
    world = World(time.sleep)

    def run():
        with Patience(0.3, "W") as patience:
            patience.watch(world, nobody)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert world.step is time.sleep
