"""The bare loops that a row is held against."""

from benchmarks.bare import BareLoops
from benchmarks.throughput import settings_of


def test_in_turn_is_what_a_learner_does_tick_by_tick() -> None:
    loops = BareLoops(settings_of("dqn --env ImageMDP-v0 --width 8 --replay-ratio 0.25"))
    done, step = [], loops.made.step
    loops._act = lambda: done.append("act")
    loops.made.step = lambda actions: done.append("world") or step(actions)
    loops.loops["update"] = lambda units: done.append(f"update {units}")
    loops.in_turn(2)
    assert done == ["act", "world"] * 4 + ["update 1"] + ["act", "world"] * 4 + ["update 1"]
    loops.close()


def test_its_parts_run() -> None:
    for flags in (
        "dqn --env ImageMDP-v0 --width 8 --loss huber",
        "c51 --env ImageMDP-v0 --width 8",
        "ppo --env CartPole-v1 --rollout-steps 16 --num-minibatches 2",
    ):
        loops = BareLoops(settings_of(flags))
        for work in (*loops.loops.values(), loops.in_turn):
            work(1)
        loops.close()
