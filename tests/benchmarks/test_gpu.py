"""The script for a GPU, as far as it goes without one."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import intervention_cost
from benchmarks.gpu import _same_weights, same
from benchmarks.gpu_rows import PARTS, ROWS, Bench, Watched
from benchmarks.throughput import settings_of

DRY = Bench(torch.device("cpu"), dry=True)


def test_a_dry_run_replaces_flags_by_small_ones() -> None:
    flags = "ppo --env Ant-v5 --num-envs 8 --rollout-steps 256"
    assert (
        DRY.sized(flags, "--rollout-steps 8 --width 4") == "ppo --env Ant-v5 --num-envs 8 --rollout-steps 8 --width 4"
    )
    assert Bench(torch.device("cpu"), dry=False).sized(flags, "--rollout-steps 8") == flags


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_row_has_settings_in_both_sizes(row) -> None:
    small, whole = settings_of(DRY.sized(row.flags, row.tiny)), settings_of(row.flags)
    assert small.world.env == whole.world.env and whole.agent.network.width in (64, 512)


def test_the_greatest_difference_of_a_weight() -> None:
    agents = []
    for _ in range(2):
        network = nn.Linear(3, 2)
        agent = SimpleNamespace(network=network, state_dict=network.state_dict, load_state_dict=network.load_state_dict)
        agents.append(SimpleNamespace(agent=agent))
    with _same_weights(*agents) as difference:
        assert difference() == 0.0
        with torch.no_grad():
            agents[0].agent.network.weight[1, 2] += 0.25
            agents[1].agent.network.bias[0] -= 0.5
        assert difference() == pytest.approx(0.5, abs=1e-7)


def test_on_one_device_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"ppo-ant-64": intervention_cost.rows()["ppo-ant-64"]}
    monkeypatch.setattr(intervention_cost, "rows", lambda: one)
    assert [row["difference"] for row in same(DRY)] == [0.0]


def test_where_the_time_of_a_run_goes() -> None:
    run = Watched(settings_of("ppo --env CartPole-v1 --rollout-steps 8 --width 8 --update-epochs 2"))
    run.run(1)
    speed, shares = run.speed(DRY)
    assert set(shares) == set(PARTS) and all(share > 0 for share in shares.values())
    assert sum(shares.values()) <= 1 and speed > 0
    before = run.step
    found = run.profiled(DRY)
    assert run.step == before + 4 * 8 * 8  # one update under the profiler, three by the clock
    assert found["update_ms"] > 0 and found["kernels_ms"] > 0 and found["kernels"] > 10
    run.close()
