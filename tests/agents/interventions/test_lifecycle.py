"""Who calls which hook when, what an intervention is given, and that none of it changes a run without interventions."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agents import build_agent, losses
from agents.config import NetworkConfig, SupportConfig
from agents.heads import ValueHead
from agents.interventions import CBP, L2, ReDo, WeightDecay
from agents.interventions.base import Intervention, roles
from agents.interventions.lifecycle import Lifecycle, check_interventions, merged
from agents.kinds import kind_of
from agents.networks import MLP, ActorCritic, QNetwork
from agents.ppo_config import PPOConfig
from agents.randomness import Generators
from agents.value_config import C51Config, DQNConfig
from agents.when import When
from plasticity_probes import activations
from tests.agents.helpers import CONTINUOUS, SMALL, SMALL_IMAGE, VECTOR, NoiseWorld, build, drive, same_tree

VALUE = {
    "network": SMALL,
    "buffer_size": 400,
    "learning_starts": 40,
    "batch_size": 16,
    "replay_ratio": 0.5,
    "target_period": 7,
    "support": SupportConfig(-3.0, 3.0, 13),
}
POLICY = {"network": SMALL, "rollout_steps": 16, "num_minibatches": 2, "update_epochs": 3}
AGENTS = {
    "dqn": (DQNConfig(**VALUE), VECTOR),
    "c51": (C51Config(**VALUE), VECTOR),
    "dqn, images": (DQNConfig(**VALUE), SMALL_IMAGE),
    "ppo": (PPOConfig(**POLICY), VECTOR),
    "ppo, apart, continuous": (PPOConfig(**POLICY, shared_torso=False, normalize_observations=True), CONTINUOUS),
}
every_agent = pytest.mark.parametrize("kind", AGENTS)


def agent_of(kind, interventions=(), seed=0):
    config, spaces = AGENTS[kind]
    return build(config, spaces, seed=seed, interventions=interventions)


def world_of(kind):
    return NoiseWorld(AGENTS[kind][1], 2)


@dataclass(eq=False)
class Diary(Intervention):
    """Writes down which hooks were called, with what; several may write into one book."""

    name = "diary"
    captures = frozenset({"hidden", "preactivations"})
    book: list | None = None

    def attach(self, networks, generators):
        self.networks, self.forwards, self.page = dict(networks), [], [] if self.book is None else self.book

    def penalty(self, forward):
        self.page.append(f"{self.name}: penalty")
        self.forwards.append(forward)

    def every_step(self, surgery, forward, drawn):
        assert surgery.acting == self.name and drawn == {}
        self.page.append(f"{self.name}: every step")

    def intervene(self, surgery, clock):
        assert surgery.acting == self.name
        self.page.append((self.name, clock.steps, clock.gradient_steps, clock.task))

    def state_dict(self):
        return {"pages": len(self.page)}

    def load_state_dict(self, state):
        self.pages = state["pages"]


class Third(Diary):
    name, when = "third", When("every 3 gradient steps")


class Syncs(Diary):
    name, when = "syncs", When("at target syncs")


class Tasks(Diary):
    name, when = "tasks", When("at task changes")


class Once(Diary):
    name, when = "once", When("at step 45")


def written(*kinds, step, steps, due=()):
    """What a gradient step leaves in the book; `due` are those whose time it is."""
    page = [f"{kind.name}: penalty" for kind in kinds]
    page += [f"{kind.name}: every step" for kind in kinds]
    return page + [(kind.name, steps, step, None) for kind in kinds if kind.name in due]


@every_agent
def test_an_intervention_that_does_nothing_changes_nothing(kind):
    plain = drive(agent_of(kind), world_of(kind), 80)
    idle = drive(agent_of(kind, [type("Idle", (Intervention,), {"name": "idle"})()]), world_of(kind), 80)
    watched = drive(agent_of(kind, [Diary()]), world_of(kind), 80)
    for other in (idle, watched):
        assert same_tree(other.network.state_dict(), plain.network.state_dict())
        assert same_tree(other.learner.optimization.state_dict(), plain.learner.optimization.state_dict())
    assert plain.clock.gradient_steps >= 20


def regression(config, network, target, batch):
    rows = torch.arange(config.batch_size)
    with torch.no_grad():
        wanted = batch.rewards + batch.discounts * target(batch.next_observations).amax(1)
    return (network(batch.observations)[rows, batch.actions] - wanted).square().mean()


def categorical(config, network, target, batch):
    rows, support = torch.arange(config.batch_size), losses.atoms(-3.0, 3.0, 13)
    with torch.no_grad():
        p = torch.softmax(target(batch.next_observations), -1)
        p = p[rows, (p * support).sum(-1).argmax(1)]
        wanted = losses.categorical_projection(batch.rewards[:, None] + batch.discounts[:, None] * support, p, support)
    return -(wanted * torch.log_softmax(network(batch.observations)[rows, batch.actions], -1)).sum(-1).mean()


@pytest.mark.parametrize(("kind", "loss_of"), [("dqn", regression), ("dqn, images", regression), ("c51", categorical)])
def test_value_agents_without_interventions_are_the_plain_loop_bit_for_bit(kind, loss_of):
    config, spaces = AGENTS[kind]
    config = replace(config, loss="mse") if kind != "c51" else config
    agent, world = build(config, spaces), NoiseWorld(spaces, 2)
    drive(agent, world, 20, learn=False)
    network, target = copy.deepcopy(agent.network), copy.deepcopy(agent.network)
    adam = torch.optim.Adam(network.parameters(), config.learning_rate.start, eps=config.adam.eps, fused=True)
    batches, sample = [], agent.replay.sample
    agent.replay.sample = lambda n: batches.append(sample(n)) or batches[-1]
    drive(agent, world, 60)
    for step, batch in enumerate(batches, start=1):
        loss = loss_of(config, network, target, batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % config.target_period == 0:
            target.load_state_dict(network.state_dict())
    assert len(batches) >= 20
    assert same_tree(agent.network.state_dict(), network.state_dict())
    assert same_tree(agent.learner.target.state_dict(), target.state_dict())
    assert same_tree(agent.learner.optimization.adam.state_dict()["state"], adam.state_dict()["state"])


@pytest.mark.parametrize("kind", ["ppo", "ppo, apart, continuous"])
def test_ppo_without_interventions_is_the_plain_loop_bit_for_bit(kind):
    config, spaces = AGENTS[kind]
    config = replace(config, max_grad_norm=0.0, normalize_observations=False)
    agent, world = build(config, spaces, seed=4), NoiseWorld(spaces, 2)
    network, rollouts = copy.deepcopy(agent.network), []
    agent.keep_recent = lambda data: rollouts.append({name: tensor.clone() for name, tensor in data.items()})
    drive(agent, world, 64)
    adam = torch.optim.Adam(network.parameters(), config.learning_rate.start, eps=config.adam.eps, fused=True)
    shuffle = Generators(4).torch("minibatches")
    for data in rollouts:
        for _ in range(config.update_epochs):
            order = torch.randperm(32, generator=shuffle)
            for rows in order.split(16):
                policy, values = network(data["observations"][rows])
                if kind == "ppo":
                    log_probs, entropies = losses.categorical_log_prob_entropy(policy, data["actions"][rows])
                else:
                    log_probs, entropies = losses.gaussian_log_prob_entropy(
                        policy, network.log_std, data["actions"][rows]
                    )
                log_ratio, advantages = log_probs - data["log_probs"][rows], data["advantages"][rows]
                std, mean = torch.std_mean(advantages)
                advantages = (advantages - mean) / (std + 1e-8)
                # where the clipped ratio counts, it is at the bound that A's sign says: the same numbers, rounded alike
                clipped = advantages + config.clip_coef * advantages.abs()
                policy_loss = (-torch.minimum(log_ratio.exp() * advantages, clipped)).mean()
                value_loss = (values - data["returns"][rows]).square().mean()
                loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropies.mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
    assert len(rollouts) == 4
    assert same_tree(agent.network.state_dict(), network.state_dict())
    assert same_tree(agent.learner.optimization.adam.state_dict()["state"], adam.state_dict()["state"])


def test_nothing_is_traced_or_kept_without_interventions():
    agent = agent_of("dqn")
    assert agent.learner.interventions.surgery is None
    assert agent.learner.interventions.layers == []
    assert agent.learner.interventions.wanted is None
    assert agent.learner.interventions.forward(torch.zeros(2, 5), {}) is None
    assert agent.learner.interventions.surgeries() == agent.learner.interventions.state_dict() == {}
    assert len(agent.learner.optimization.adam.param_groups) == 1


def test_hooks_of_a_value_agent_in_their_order():
    # 2 environments, learning from step 40 on, a gradient step each 2 steps, a target copy each 7 gradient steps
    kinds, book = (Third, Syncs, Once, Tasks), []
    agent = drive(agent_of("dqn", [kind(book=book) for kind in kinds]), world_of("dqn"), 60)
    members = agent.learner.interventions.members
    assert all(one.networks == {"online": agent.network, "target": agent.learner.target} for one in members)
    expected = []
    for step in range(1, 41):
        due = ["third"] * (step % 3 == 0) + ["once"] * (step == 3)
        expected += written(*kinds, step=step, steps=40 + 2 * step, due=due)
        expected += [("syncs", 40 + 2 * step, step, None)] * (step % 7 == 0)
    assert agent.clock.gradient_steps == 40 and book == expected
    agent.clock.task = 1
    agent.on_task_change()
    assert book[len(expected) :] == [("tasks", 120, 40, 1)]


def test_hooks_of_ppo_in_their_order():
    # 2 x 16 steps, 3 epochs of 2 minibatches
    kinds, book = (Syncs, Once, Third), []
    agent = drive(agent_of("ppo", [kind(book=book) for kind in kinds]), world_of("ppo"), 32)
    assert all(list(one.networks) == ["online"] for one in agent.learner.interventions.members)
    expected = []
    for phase, steps in ((0, 32), (1, 64)):
        expected += [("syncs", steps, 6 * phase, None)]
        for step in range(6 * phase + 1, 6 * phase + 7):
            due = ["third"] * (step % 3 == 0) + ["once"] * (step == 7)  # step 45 lies between the two phases
            expected += written(*kinds, step=step, steps=steps, due=due)
    assert book == expected


def test_what_is_due_does_not_come_twice_after_a_restart():
    first, second = (agent_of("ppo", [Once()]) for _ in range(2))
    drive(first, world_of("ppo"), 32)
    assert first.learner.interventions.members[0].page.count(("once", 64, 7, None)) == 1
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    drive(second, world_of("ppo"), 16)
    assert second.clock.gradient_steps == 18
    assert not [entry for entry in second.learner.interventions.members[0].page if isinstance(entry, tuple)]


def test_each_draws_from_a_stream_of_its_own_among_the_runs():
    class Draw(Diary):
        name = "draw"

        def draws(self):
            return {"b": (2, 3), "a": (1,)}

        def every_step(self, surgery, forward, drawn):
            self.page.append({name: tensor.clone() for name, tensor in drawn.items()})  # one place for all steps

    class Other(Draw):
        name = "other"

    generators = Generators(3)
    agent = build_agent(*AGENTS["ppo"], 2, generators, torch.device("cpu"), interventions=[Draw(), Other()])
    drive(agent, world_of("ppo"), 16)
    source = Generators(3).torch("draw's draws")
    for found in agent.learner.interventions.members[0].page[1::2]:
        assert list(found) == ["b", "a"]
        for name, shape in (("b", (2, 3)), ("a", (1,))):
            assert torch.equal(found[name], torch.rand(shape, dtype=torch.float64, generator=source))
    assert torch.equal(generators.state_dict()["draw's draws"], source.get_state())
    one, other = (member.page[1]["b"] for member in agent.learner.interventions.members)
    assert not torch.equal(one, other)


@every_agent
def test_captured_is_what_the_layers_hold(kind):
    agent = drive(agent_of(kind, [Diary()]), world_of(kind), 60)
    (diary,) = agent.learner.interventions.members
    forward = diary.forwards[-1]
    again = forward.again(agent.network)
    slowly = activations(agent.network, forward.observations)
    assert list(forward.captured) == list(again) == list(slowly) == [layer.name for layer in diary.layers]
    for name, (before, after) in again.items():
        torch.testing.assert_close(before, slowly[name].pre, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after, slowly[name].post, rtol=1e-5, atol=1e-6)
    assert all(before.requires_grad and after.requires_grad for before, after in forward.captured.values())
    copied = forward.again(copy.deepcopy(agent.network))
    assert all(torch.equal(copied[name][1], again[name][1]) for name in again)


@every_agent
def test_what_comes_before_the_nonlinearity_is_held_only_where_it_is_asked_for(kind):
    class OnlyHidden(Diary):
        name, captures = "only_hidden", frozenset({"hidden"})

    both = agent_of(kind, [OnlyHidden(), Diary()])
    alone = agent_of(kind, [OnlyHidden()])
    for agent in (both, alone):
        drive(agent, world_of(kind), 60)
    for told, agreed in zip(
        alone.learner.interventions.members[0].forwards, both.learner.interventions.members[0].forwards, strict=True
    ):
        assert list(told.captured) == list(agreed.captured) != []
        for (after,), (before, same) in zip(told.captured.values(), agreed.captured.values(), strict=True):
            assert before is not after
            assert torch.equal(after, same)
    again = alone.learner.interventions.members[0].forwards[-1].again(alone.network)
    assert all(len(both) == 2 for both in again.values())


def test_a_penalty_is_added_to_the_loss_and_to_the_log():
    @dataclass(eq=False)
    class Pull(Intervention):
        name = "pull"

        def penalty(self, forward):
            return 0.5 * sum(parameter.square().sum() for _, parameter in self.named_parameters(forward.network))

    agent = agent_of("dqn", [Pull()])
    drive(agent, world_of("dqn"), 21, learn=False)
    before = copy.deepcopy(agent.network)
    seen, sample = [], agent.replay.sample
    agent.replay.sample = lambda n: seen.append(sample(n)) or seen[-1]
    metrics = agent.update()
    batch, rows = seen[0], torch.arange(16)
    with torch.no_grad():
        wanted = batch.rewards + batch.discounts * agent.learner.target(batch.next_observations).amax(1)
    F.smooth_l1_loss(before(batch.observations)[rows, batch.actions], wanted).backward()
    norm = sum(parameter.detach().square().sum() for parameter in before.parameters())
    torch.testing.assert_close(metrics["losses/penalty/pull"], 0.5 * norm)
    for name, parameter in before.named_parameters():
        gradient = dict(agent.network.named_parameters())[name].grad
        torch.testing.assert_close(gradient, parameter.grad + parameter.detach())


@pytest.mark.parametrize(("only", "touched"), [("all", "torso head"), ("encoder", "torso"), ("critic", "head")])
def test_limits_of_a_q_network(only, touched):
    agent = agent_of("dqn", [Diary(only=only)])
    (diary,) = agent.learner.interventions.members
    names = {name.partition(".")[0] for name, _ in diary.named_parameters(agent.network)}
    assert names == set(touched.split())
    assert len(diary.layers) == (2 if "torso" in touched else 0)


@pytest.mark.parametrize("only", ["actor", "critic"])
def test_limits_of_an_actor_critic(only):
    agent = agent_of("ppo, apart, continuous", [Diary(only=only)])
    (diary,) = agent.learner.interventions.members
    names = {name.partition(".")[0] for name, _ in diary.named_parameters(agent.network)}
    mine = {"actor": {"actor_torso", "policy_head", "log_std"}, "critic": {"critic_torso", "value_head"}}
    assert names == mine[only]
    assert [layer.name.partition("_")[0] for layer in diary.layers] == [only, only]


def test_a_torso_that_is_limited_is_configured_alone():
    @dataclass(eq=False)
    class Wide(Intervention):
        name = "wide"

        def configure(self, network):
            return replace(network, width=24)

    agent = agent_of("ppo, apart, continuous", [Wide(only="critic")])
    assert (agent.network.actor_torso.features, agent.network.critic_torso.features) == (16, 24)
    drive(agent, world_of("ppo, apart, continuous"), 32)


def test_parts():
    def parts(agent):
        return kind_of(agent).parts(agent)

    assert parts(DQNConfig()) == parts(C51Config()) == ("encoder", "critic")
    assert parts(PPOConfig()) == ("encoder", "actor", "critic")
    assert parts(PPOConfig(shared_torso=False)) == ("actor", "critic")
    with pytest.raises(ValueError, match=r"diary\.only = 'actor': must be all, encoder or critic"):
        check_interventions([Diary(only="actor")], DQNConfig())
    with pytest.raises(ValueError, match=r"must be all, actor or critic: actor and critic have torsos of their own"):
        check_interventions([Diary(only="encoder")], PPOConfig(shared_torso=False))


def test_refusals_name_both_and_come_before_anything_is_built():
    @dataclass(eq=False)
    class Rival(Intervention):
        name = "rival"
        conflicts = frozenset({"diary"})

        def build(self, network, generator):
            raise AssertionError("built")

    for pair in ([Diary(), Rival()], [Rival(), Diary()]):
        with pytest.raises(ValueError, match=f"interventions: {pair[0].name} and {pair[1].name} cannot work together"):
            agent_of("dqn", pair)
    with pytest.raises(ValueError, match="diary is given twice"):
        agent_of("ppo", [Diary(), Diary()])


def test_others_can_be_refused_in_some_settings():
    @dataclass(eq=False)
    class Jealous(Intervention):
        name = "jealous"

        def check_beside(self, others):
            self.require(not others, "only", "alone")

    agent_of("dqn", [Jealous()])
    for pair in ([Jealous(), Diary()], [Diary(), Jealous()]):
        with pytest.raises(ValueError, match=r"jealous\.only = 'all': must be alone"):
            agent_of("dqn", pair)
        with pytest.raises(ValueError, match=r"jealous\.only = 'all': must be alone"):
            Lifecycle(pair)  # where there is no agent of ours, too


def test_parts_do_not_reconcile_two_that_refuse_each_other():
    pair = [WeightDecay(only="critic"), L2(only="actor")]
    with pytest.raises(ValueError, match="weight_decay and l2 cannot work together, whatever parts they are limited"):
        Lifecycle(pair)


def test_a_penalty_that_is_no_tensor_is_named():
    @dataclass(eq=False)
    class Careless(Intervention):
        name = "careless"

        def penalty(self, forward):
            return 0

    with pytest.raises(TypeError, match="careless: its penalty is 0: must be a tensor, or None"):
        drive(agent_of("dqn", [Careless()]), world_of("dqn"), 80)


def test_a_setting_of_the_agent_can_be_refused():
    @dataclass(eq=False)
    class Picky(Intervention):
        name = "picky"

        def check(self, agent, others):
            self.require(not isinstance(agent, PPOConfig) and len(others) == 1, "only", "elsewhere")

    agent_of("dqn", [Picky(), Diary()])
    for kind, others in (("ppo", [Diary()]), ("dqn", [])):
        with pytest.raises(ValueError, match=r"picky\.only = 'all': must be elsewhere"):
            agent_of(kind, [Picky(), *others])


def test_roles():
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(1, 1, 1))
    assert set(roles(network).items()) == {
        ("0.weight", "weight"),
        ("0.bias", "bias"),
        ("1.weight", "norm"),
        ("1.bias", "norm"),
        ("2.weight", "weight"),
        ("2.bias", "bias"),
    }
    generator = torch.Generator().manual_seed(0)
    policy = ActorCritic(
        CONTINUOUS, SMALL, shared_torso=True, head=ValueHead(), normalize_observations=False, generator=generator
    )
    assert roles(policy)["log_std"] == "log_std"


def test_groups_with_equal_options_become_one():
    a, b, c, d = (nn.Parameter(torch.zeros(1)) for _ in range(4))
    groups = [
        {"params": [a], "name": "a", "role": "weight", "weight_decay": 0.1},
        {"params": [b], "name": "b", "role": "bias"},
        {"params": [c], "name": "c", "role": "weight", "weight_decay": 0.1},
        {"params": [d]},
    ]
    first, second = merged(groups)
    assert (first["params"], first["weight_decay"], set(first)) == ([a, c], 0.1, {"params", "weight_decay"})
    assert (second["params"], set(second)) == ([b, d], {"params"})


def test_members_are_copies_so_that_settings_can_be_used_again():
    diary = Diary()
    first, second = agent_of("dqn", [diary]), agent_of("ppo", [diary])
    assert first.learner.interventions.members[0] is not second.learner.interventions.members[0]
    assert not hasattr(diary, "page")
    assert first.learner.interventions.members[0] == second.learner.interventions.members[0] == diary
    assert diary != Diary(only="encoder")


def test_state_goes_through_the_agent_s():
    agent = drive(agent_of("dqn", [Diary()]), world_of("dqn"), 60)
    other = agent_of("dqn", [Diary()])
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    assert other.learner.interventions.members[0].pages == len(agent.learner.interventions.members[0].page)
    agent_of("dqn").load_state_dict(agent_of("dqn").state_dict())


def test_what_was_done_is_handed_out_once():
    @dataclass(eq=False)
    class Cut(Intervention):
        name = "cut"

        when = When("at gradient step 2")

        def intervene(self, surgery, clock):
            units = torch.arange(16) < 3
            surgery.replace({self.layers[0].name: units})

    agent = drive(agent_of("dqn", [Diary(), Cut()]), world_of("dqn"), 60)
    done = agent.learner.interventions.surgeries()
    assert {key: int(amount) for key, amount in done.items()} == {("cut", "replaced", "torso.layers.dense1"): 3}
    assert agent.learner.interventions.surgeries() == {}


def test_a_lifecycle_beside_a_network_of_ones_own():
    generator = torch.Generator().manual_seed(0)
    life = Lifecycle([Diary()])
    torso = MLP((5,), life.configure(NetworkConfig(width=8, depth=1), "encoder"), generator)
    network = life.build(QNetwork(torso, 3, ValueHead(), "torch", generator), generator)
    groups = life.attach({"online": network}, torch.zeros(2, 5), Generators(0))
    life.make_surgeon(torch.optim.Adam(groups, fused=True), generator, lambda n: torch.zeros(n, 5))
    _, captured = network(torch.zeros(4, 5), life.wanted)
    assert list(life.forward(torch.zeros(4, 5), captured).captured) == ["torso.layers.dense1"]
    assert list(life.surgery.activations(6)) == ["torso.layers.dense1"]


@every_agent
def test_names_among_the_interventions_stand_for_defaults(kind):
    agent = build(*AGENTS[kind], interventions=["redo", L2(rate=1e-3), "cbp"])
    assert agent.learner.interventions.members == (ReDo(), L2(rate=1e-3), CBP())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("redo", "interventions = 'redo': must be a list of interventions or their names"),
        ([ReDo], r"interventions: ReDo is a class: must be an object, such as ReDo\(\)"),
        ([3], "interventions: 3 is neither an intervention nor the name of one"),
        ({"redo": {}}, "interventions = {'redo': {}}: must be a list"),
    ],
)
@every_agent
def test_what_is_no_list_of_interventions_is_told_in_a_sentence(kind, given, message):
    with pytest.raises(ValueError, match=message):
        build(*AGENTS[kind], interventions=given)
