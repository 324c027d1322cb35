"""What happens on the device gives the same numbers however it is run: eagerly, compiled, or from a graph."""

import copy
from dataclasses import replace

import pytest
import torch

from agents import build_agent
from agents.config import LearningRate
from agents.execution import Executor, leaves, rebuilt
from agents.guard import NonFiniteError
from agents.interventions import NAMES
from agents.randomness import Generators
from tests.agents.helpers import CPU, NoiseWorld, drive, needs_cuda, same_tree, snapshot
from tests.agents.interventions.effects.runs import AGENTS, prepare
from tests.agents.interventions.effects.settings import fits, together
from tests.agents.tape import recorded

UPDATES = 30
TWO = "ppo with two torsos"
TOGETHER = [
    ("dqn", ["redo", "cbp", "popart"]),
    ("dqn", ["batch_norm", "dropout", "weight_clip"]),
    ("c51", ["plasticity_injection", "cbp", "nap"]),
    (TWO, ["reset", "optimizer_reset", "shrink_perturb", "popart", "batch_norm"]),
    ("ppo", ["pfo", "infer", "l2_init", "parseval", "spectral_norm"]),
]
"""All that happens at each step, all that the host decides, and what is moved before the gradient is known."""
many = pytest.mark.exhaustive
ALONE = [(kind, [name]) for kind in AGENTS for name in NAMES if fits(kind, [name])]
EVERY = [pytest.param(*case, marks=many) for case in [*((kind, []) for kind in AGENTS), *ALONE]]
CASES = [("dqn on images", []), ("ppo on images", []), *TOGETHER, *EVERY]


def agent_of(kind, names=(), execution="eager", device=CPU):
    """Its learning rate falls all along."""
    config, spaces = AGENTS[kind]
    config = replace(config, learning_rate=LearningRate(1e-3, 1e-4, "120"), max_grad_norm=0.5)
    made = {"interventions": together(names), "execution": execution}
    return build_agent(config, spaces, 2, Generators(0), device, **made)


def learned(agent, kind, updates=UPDATES, world=None, change=UPDATES // 2):
    """The agent, a new one or one that goes on in its `world`, after so many gradient steps, with a task change after
    the one that `change` says; and all metrics."""
    metrics, new = [], world is None and not agent.clock.steps
    world = prepare(kind, agent) if new else world
    while agent.clock.gradient_steps < updates:
        if world is None:
            agent.clock.steps += 2
            metrics.append(agent.update())
        else:
            agent.observe(world.step(agent.act(world.observations)))
            metrics += [agent.update()] if agent.update_due() else []
        if change and agent.clock.gradient_steps > change and agent.clock.task is None:
            agent.clock.task = 1
            agent.on_task_change()
    return agent, metrics


def assert_close(first, second, tolerance=1e-5, name=""):
    """Two nests of dicts, lists and tensors, within `tolerance` of the larger of 1 and the numbers in a tensor."""
    if isinstance(first, torch.Tensor):
        scale = max(1.0, float(first.double().abs().max())) if first.numel() else 1.0
        torch.testing.assert_close(
            first.double(), second.double(), rtol=0, atol=tolerance * scale, msg=lambda m: name + m
        )
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key, value in first.items():
            assert_close(value, second[key], tolerance, f"{name}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), name
        for place, value in enumerate(first):
            assert_close(value, second[place], tolerance, f"{name}.{place}")
    else:
        assert first == second, name


@pytest.mark.parametrize(("kind", "names"), CASES, ids=str)
def test_a_graph_replays_to_the_bit_what_is_run_as_it_stands(kind, names):
    with recorded(warm_ups=10**9) as tape:
        plain, wanted = learned(agent_of(kind, names, "graph"), kind)
        assert tape.captured == 0
    with recorded() as tape:
        agent, found = learned(agent_of(kind, names, "graph"), kind)
        assert tape.captured >= 1 and tape.replayed >= UPDATES - 3 * tape.captured
    agent.learner.optimization.flush()
    assert same_tree(agent.state_dict(), plain.state_dict())
    assert found == wanted
    assert same_tree(agent.generators.state_dict(), plain.generators.state_dict())
    done, other = agent.learner.interventions.surgeries(), plain.learner.interventions.surgeries()
    assert {key: int(amount) for key, amount in done.items()} == {key: int(amount) for key, amount in other.items()}


@pytest.mark.parametrize("kind", ["c51", TWO, *(pytest.param(kind, marks=many) for kind in AGENTS)])
def test_written_for_graphs_it_is_what_runs_eagerly_on_a_cpu(kind):
    """The step size in a tensor, the guard that latches: no more than rounding."""
    plain, wanted = learned(agent_of(kind, ["l2_init", "weight_clip"]), kind)
    with recorded():
        agent, found = learned(agent_of(kind, ["l2_init", "weight_clip"], "graph"), kind)
    assert_close(agent.state_dict(), plain.state_dict())
    assert_close(found, wanted, 1e-4)
    done, other = agent.learner.interventions.surgeries(), plain.learner.interventions.surgeries()
    assert {key: int(amount) for key, amount in done.items()} == other


@pytest.mark.parametrize("kind", ["dqn", TWO])
def test_a_state_goes_from_one_way_of_running_to_the_other(kind):
    plain, _ = learned(agent_of(kind), kind, 40, change=0)
    with recorded() as tape:
        first, second = agent_of(kind, execution="graph"), agent_of(kind, execution="graph")
        first.clock.steps, world = first.clock.steps, prepare(kind, first)
        learned(first, kind, 20, world, change=0)
        learned(second, kind, 10, change=0)  # what it has captured so far no longer holds
        groups = first.state_dict()["optimization"]["adam"]["param_groups"]
        assert not [value for group in groups for value in group.values() if torch.is_tensor(value)]
        replayed = tape.replayed
        for agent in (second, agent_of(kind)):
            agent.load_state_dict(copy.deepcopy(first.state_dict()))
            agent.generators.load_state_dict(first.generators.state_dict())
            memory = "replay" if world is None else "rollout"
            setattr(agent, memory, copy.deepcopy(getattr(first, memory)))
            assert_close(learned(agent, kind, 40, copy.deepcopy(world), 0)[0].state_dict(), plain.state_dict())
        assert tape.replayed > replayed + 10


class Counting:
    """A function of tensors that knows how often it was called."""

    def __init__(self, spoil=lambda x: None):
        self.calls, self.spoil = 0, spoil
        self.total = torch.zeros(())

    def __call__(self, given):
        self.calls += 1
        self.total.add_(given["x"].sum())
        self.spoil(given["x"])
        return {"total": self.total * 1.0, "mean": given["x"].mean()}


def executor(said=None):
    return Executor("graph", CPU, None, (said if said is not None else []).append)


def test_what_was_captured_is_not_called_again_and_its_numbers_stay():
    function, given = Counting(), [torch.full((3,), float(n)) for n in range(8)]
    with recorded():
        run = executor()
        found = [run.run(function, {"x": x}) for x in given]
    assert function.calls == 3  # two to warm up, one to capture
    assert [one["total"].item() for one in found] == [0.0, 3.0, 9.0, 18.0, 30.0, 45.0, 63.0, 84.0]
    assert [one["mean"].item() for one in found] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_each_shape_and_each_structure_has_a_graph():
    function = Counting()
    with recorded() as tape:
        run = executor()
        for size, structure in [(3, ()), (5, ()), (3, True), (3, ()), (5, ())] * 4:
            run.run(function, {"x": torch.ones(size)}, structure)
        run.forget()
        run.run(function, {"x": torch.ones(3)})
    assert tape.captured == 3 and function.calls == 3 * 3 + 1
    assert function.total.item() == 4 * (3 + 5 + 3 + 3 + 5) + 3


def test_where_shapes_never_end_the_rest_run_eagerly_and_that_is_told_of():
    function, said = Counting(), []
    with recorded() as tape:
        run = executor(said)
        for size in [*range(1, 36)] * 4:
            run.run(function, {"x": torch.ones(size)})
    assert tape.captured == 32 and function.total.item() == 4 * 35 * 36 / 2
    assert said == ["execution: tensors come in more than 32 shapes, of which the rest run eagerly"]


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0])],
    ids=["value", "shape", "mask", "host"],
)
def test_what_cannot_be_captured_runs_eagerly_and_is_told_of(spoil):
    function, said = Counting(spoil), []
    with recorded() as tape:
        run = executor(said)
        found = [run.run(function, {"x": torch.full((2,), float(n))})["mean"].item() for n in range(6)]
    assert tape.captured == 0 and found == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    (line,) = said
    assert line.startswith("execution: a graph could not be captured, so everything runs eagerly: ")
    assert "\n" not in line


def test_without_a_gpu_a_graph_is_told_of_and_auto_is_eager():
    said = []
    assert Executor("graph", CPU, None, said.append).mode == "eager"
    assert said == ["execution: graphs are captured on a GPU; without one everything runs eagerly"]
    assert Executor("auto", CPU, None, said.append).mode == Executor("eager", CPU).mode == "eager"
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["dqn", "ppo"])
def test_in_a_graph_a_loss_that_is_not_finite_latches(kind):
    with recorded() as tape:
        agent, _ = learned(agent_of(kind, ["batch_norm"], "graph"), kind, 20)
        before = snapshot(agent.state_dict())
        replayed, run = tape.replayed, agent.learner.run_step
        agent.learner.run_step = lambda function, batch, *rest: run(function, spoiled(batch), *rest)
        for _ in range(3):
            agent.update() if kind == "dqn" else drive(agent, NoiseWorld(agent.spaces, 2), agent.config.rollout_steps)
        assert tape.replayed >= replayed + 3
    for part in ("network", "target_network"):
        assert same_tree(agent.state_dict().get(part), before.get(part))
    assert same_tree(agent.state_dict()["optimization"]["adam"]["state"], before["optimization"]["adam"]["state"])
    with pytest.raises(NonFiniteError, match="loss is not finite at gradient step 21"):
        agent.learner.optimization.flush()
    assert agent.clock.gradient_steps == 20


def spoiled(batch):
    name = "rewards" if hasattr(batch, "rewards") else "returns"
    if isinstance(batch, dict):
        return batch | {name: batch[name] * float("inf")}
    return batch._replace(rewards=batch.rewards * float("inf"))


def recorded_batches(kind, number):
    """What an agent learned from, as it was."""
    agent, found = agent_of(kind), []
    update = agent.learner.update
    agent.learner.update = lambda learn, batch: found.append(snapshot_of(batch)) or update(learn, batch)
    learned(agent, kind, number)
    return found


def snapshot_of(batch):
    return rebuilt(batch, [tensor.clone() for tensor in leaves(batch)])


def after(kind, execution, batches, names=(), device=CPU):
    """An agent that has learned from these batches."""
    agent = agent_of(kind, names, execution, device)
    for place, batch in enumerate(batches, 1):
        agent.learner.anneal(place)
        agent.learner.update(agent.learn, rebuilt(batch, [tensor.to(device) for tensor in leaves(batch)]))
        if agent.learner.target is not None and place % 15 == 0:
            agent.learner.sync_target()
    agent.learner.optimization.flush()
    return agent


@pytest.mark.parametrize("kind", ["dqn", *(pytest.param(kind, marks=many) for kind in AGENTS)])
def test_after_200_updates_on_the_same_batches_a_graph_is_where_the_plain_path_is(kind):
    batches = recorded_batches(kind, 200)
    with recorded() as tape:
        replayed = after(kind, "graph", batches)
    assert tape.replayed >= 190 and len(batches) == 200
    assert_close(replayed.state_dict(), after(kind, "eager", batches).state_dict())


@many
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", AGENTS)
def test_after_200_updates_on_the_same_batches_what_is_compiled_is_where_the_plain_path_is(kind, capsys):
    batches = recorded_batches(kind, 200)
    compiled = after(kind, "compile", batches)
    assert "execution: compiled in " in capsys.readouterr().out
    assert_close(compiled.state_dict(), after(kind, "eager", batches).state_dict())


@pytest.mark.parametrize("execution", ["graph", pytest.param("compile", marks=many)])
@pytest.mark.parametrize(("kind", "names"), [("dqn", ["redo", "dropout"]), (TWO, ["cbp", "nap"])])
def test_an_agent_that_takes_over_from_a_checkpoint_goes_on_to_the_bit(kind, names, execution):
    with recorded():
        first = agent_of(kind, names, execution)
        world = prepare(kind, first)
        learned(first, kind, 20, world)
        second = agent_of(kind, names, execution)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        second.generators.load_state_dict(first.generators.state_dict())
        memory = "replay" if world is None else "rollout"
        setattr(second, memory, copy.deepcopy(getattr(first, memory)))
        for agent, its_world in ((second, copy.deepcopy(world)), (first, world)):
            learned(agent, kind, 50, its_world)
    assert same_tree(first.state_dict(), second.state_dict())


def test_where_nothing_can_be_compiled_a_line_says_so(monkeypatch):
    def fails(function, **options):
        def raises(*given):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nmore of it")

        return raises

    monkeypatch.setattr(torch, "compile", fails)
    said, function = [], Counting()
    run = Executor("compile", CPU, None, said.append)
    compiled = run.compiled(function)
    assert [compiled({"x": torch.ones(2)})["mean"].item() for _ in range(3)] == [1.0, 1.0, 1.0]
    assert said[-1].endswith("so everything runs eagerly: InvalidCxxCompiler: no working C++ compiler")
    assert len(said) == 2 and function.calls == 3


@needs_cuda
@pytest.mark.parametrize(("kind", "names"), CASES, ids=str)
def test_on_cuda_a_graph_is_where_the_plain_path_is(kind, names):
    batches, device = recorded_batches(kind, 60), torch.device("cuda")
    graph = after(kind, "graph", batches, names, device)
    assert graph.learner.executor.captures  # no capture has failed
    assert_close(graph.state_dict(), after(kind, "eager", batches, names, device).state_dict(), 1e-3)


@needs_cuda
@pytest.mark.parametrize("kind", list(AGENTS))
@pytest.mark.parametrize("stored_on", ["host", "device"])
def test_no_update_from_a_graph_waits_for_the_device(kind, stored_on):
    config, spaces = AGENTS[kind]
    settings = {"learning_rate": LearningRate(1e-3, 1e-4, "120")}
    if not kind.startswith("ppo"):
        settings["replay_device"] = stored_on
    made = {"device": torch.device("cuda"), "interventions": together(["cbp", "spectral_norm"])}
    agent = build_agent(replace(config, **settings), spaces, 2, Generators(0), **made)
    drive(agent, NoiseWorld(spaces, 2), 60)  # all is captured
    before = agent.clock.gradient_steps
    agent.learner.update = unwaiting(agent.learner.update)
    if not kind.startswith("ppo"):
        agent.replay.sample = unwaiting(agent.replay.sample)
    drive(agent, NoiseWorld(spaces, 2), 20)
    assert agent.clock.gradient_steps >= before + 10 and agent.learner.executor.captures
    agent.learner.optimization.flush()


def unwaiting(function):
    """The function, in which whoever waits for the device fails."""

    def watched(*given):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched
