"""The probes in Stable-Baselines3's runs: they change nothing, their losses are SB3's own, and they are written."""

import copy
import csv
import json
import random
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plasticity_probes.sb3 import PlasticityCallback
from plasticity_probes.sb3.batches import own_random_state
from plasticity_probes.sb3.subjects import probed_networks


@pytest.fixture(autouse=True)
def _one_thread_and_a_forked_random_state():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with own_random_state(torch.device("cpu")):
        yield
    torch.set_num_threads(threads)


class RandomWorld(gym.Env):
    """Independent observations and rewards; episodes of 11 steps, time limit and end by turns."""

    def __init__(self, observations, actions):
        self.observation_space, self.action_space = observations, actions
        self.count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        self.count += 1
        over, ended = self.count % 11 == 0, self.count % 2 == 0
        return self._observe(), float(self.np_random.normal()), over and ended, over and not ended, {}

    def _observe(self):
        space = self.observation_space
        if isinstance(space, spaces.Box):
            return self.np_random.uniform(space.low, space.high).astype(space.dtype)
        return space.sample()


def box(size):
    return spaces.Box(-2.0, 2.0, (size,), np.float32)


def seeded(env):
    env.observation_space.seed(1)
    env.action_space.seed(2)
    return env


def images():
    """Draws from the observation space that SB3's networks are built from."""
    return seeded(FakeImageEnv(action_dim=3, screen_height=36, screen_width=36, n_channels=1))


def identity():
    """Discrete observations."""
    return seeded(IdentityEnv(4))


def worlds(make, envs=1, normalize=False):
    venv = make_vec_env(make, envs, seed=5)
    return VecNormalize(venv) if normalize else venv


SMALL = {"net_arch": [12, 10]}
COMMON = {"seed": 3, "device": "cpu", "policy_kwargs": SMALL}


def off(**kwargs):
    """Copies, because SB3 writes into what it is given."""
    return copy.deepcopy({"learning_starts": 40, "batch_size": 16, "buffer_size": 90, **COMMON, **kwargs})


def on(**kwargs):
    return copy.deepcopy({"n_steps": 40, **COMMON, **kwargs})


def dqn(**kwargs):
    make = lambda: RandomWorld(box(4), spaces.Discrete(3))  # noqa: E731
    return DQN("MlpPolicy", worlds(make, 2, normalize=True), n_steps=3, train_freq=2, **off(**kwargs))


def ppo(actions=None, **kwargs):
    make = lambda: RandomWorld(box(4), actions or spaces.Discrete(3))  # noqa: E731
    settings = on(**{"n_epochs": 2, "batch_size": 20, "clip_range_vf": 0.1, **kwargs})
    return PPO("MlpPolicy", worlds(make, 2, normalize=True), **settings)


def continuous(kind, **kwargs):
    make = lambda: RandomWorld(box(4), box(2))  # noqa: E731
    return kind("MlpPolicy", worlds(make, 2), **off(**kwargs))


CNN = {"features_extractor_kwargs": {"features_dim": 16}, "net_arch": []}
MODELS = {
    "dqn, n-step, normalized": dqn,
    "dqn, memory-efficient": lambda: DQN(
        "MlpPolicy",
        worlds(lambda: RandomWorld(box(4), spaces.Discrete(3))),
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        **off(),
    ),
    "dqn, discrete observations": lambda: DQN("MlpPolicy", worlds(identity), **off()),
    "dqn, images": lambda: DQN("CnnPolicy", worlds(images), train_freq=12, **off(policy_kwargs=CNN)),
    "ppo, discrete": ppo,
    "ppo, continuous": lambda: ppo(box(2)),
    "ppo, images": lambda: PPO(
        "CnnPolicy",
        worlds(images),
        n_epochs=1,
        **on(policy_kwargs={**CNN, "share_features_extractor": False}, batch_size=40),
    ),
    "ppo, images, shared extractor": lambda: PPO(
        "CnnPolicy", worlds(images), n_epochs=1, **on(policy_kwargs=CNN, batch_size=40)
    ),
    "a2c, discrete observations": lambda: A2C("MlpPolicy", worlds(identity), **on(n_steps=5)),
    "sac": lambda: continuous(SAC),
    "sac, shared extractor": lambda: SAC(
        "MlpPolicy",
        worlds(lambda: RandomWorld(box(4), box(2))),
        **off(policy_kwargs={**SMALL, "share_features_extractor": True}),
    ),
    "td3": lambda: continuous(TD3),
}


class Trace(BaseCallback):
    """Everything that training looks at or leaves behind, step by step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def _on_step(self):
        here = self.locals
        self.steps.append((here["rewards"].copy(), here["actions"].copy(), here["new_obs"].copy()))
        return True


def trained(name, callback=None, steps=121):
    """The model and all that is left behind."""
    model, trace = MODELS[name](), Trace()
    model.observation_space.seed(4)  # SB3 leaves it to chance
    model.learn(steps, callback=CallbackList([trace, *([] if callback is None else [callback])]))
    assert all(isinstance(p, torch.nn.Parameter) for p in model.policy.parameters())
    policy, buffer = model.policy, getattr(model, "replay_buffer", None) or model.rollout_buffer
    optimizers = [m.optimizer for m in policy.modules() if hasattr(m, "optimizer")]
    if getattr(model, "ent_coef_optimizer", None) is not None:
        optimizers.append(model.ent_coef_optimizer)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in policy.modules())
    assert all(not optimizer._optimizer_step_post_hooks for optimizer in optimizers)
    return {
        "steps": trace.steps,
        "weights": policy.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "gradients": [p.grad for p in policy.parameters()],
        "training": [m.training for m in policy.modules()],
        "buffer": {name: value for name, value in vars(buffer).items() if isinstance(value, (np.ndarray, int))},
        "numpy": np.random.get_state()[1:],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "spaces": [model.observation_space.np_random.random(), model.action_space.np_random.random()],
    }


def same(one, other):
    """Whether two nests are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("name", MODELS)
def test_a_run_with_probes_is_the_run_without(name):
    probes = ("all",) if "images" in name else ("all", "sharpness")
    callback = PlasticityCallback(30, probes, samples=32, heavy_factor=2, heavy_samples=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no probe may fail
        probed = trained(name, callback)
    plain = trained(name)
    for key in plain:
        assert same(plain[key], probed[key]), key
    assert callback.latest.keys() >= {"probes/weight_norm/total" + part.suffix for part in callback._parts}
    assert any(tag.startswith("probes/churn/") for tag in callback.latest)
    assert any(tag.startswith("probes_fresh/") for tag in callback.latest)


def gradients_of_training(model, optimizer, train):
    """What SB3's own first step follows, by parameter."""
    seen = []

    def look(*_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append({id(p): p.grad.clone() for p in parameters if p.grad is not None})

    hook = optimizer.register_step_pre_hook(look)
    train()
    hook.remove()
    return seen[0]


def gradients_of_probes(part, batch, weights):
    """What the readouts' losses give, weighted."""
    network = part.subject.network
    with torch.no_grad():
        prepared = part.subject.prepare(batch)
    loss = sum(
        w * readout.losses(network, *prepared).mean() for w, readout in zip(weights, part.subject.readouts, strict=True)
    )
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {id(p): g for p, g in zip(parameters, found, strict=True) if g is not None}


def assert_equal_gradients(wanted, found):
    assert wanted
    for key, gradient in wanted.items():
        if gradient.abs().max() > 0 or key in found:
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ppo(batch_size=80, n_epochs=1, ent_coef=0.0, max_grad_norm=1e9),
        lambda: ppo(box(2), batch_size=80, n_epochs=1, ent_coef=0.0, max_grad_norm=1e9),
        lambda: ppo(spaces.MultiDiscrete([3, 2]), batch_size=80, n_epochs=1, max_grad_norm=1e9),
        lambda: ppo(spaces.MultiBinary(3), batch_size=80, n_epochs=1, max_grad_norm=1e9),
        lambda: A2C("MlpPolicy", worlds(lambda: RandomWorld(box(4), box(2)), 2), max_grad_norm=1e9, **on()),
    ],
    ids=["ppo", "ppo continuous", "ppo multi-discrete", "ppo multi-binary", "a2c"],
)
def test_on_policy_losses_are_those_of_sb3(make):
    model = make()
    source, [part] = probed_networks(model, 0, 80)
    found = {}

    class Keep(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            if not found:
                with torch.no_grad():  # away from the old policy, so that ratios are not 1 and clips bite
                    for p in model.policy.parameters():
                        p.add_(torch.randn(p.shape) * 0.1)
                source.keep()
                found.update(gradients_of_probes(part, source.draw(80), (1.0, model.vf_coef)))

    wanted = gradients_of_training(model, model.policy.optimizer, lambda: model.learn(80, callback=Keep()))
    assert_equal_gradients(wanted, found)


def batch_for_sb3(batch, observations):
    names = ("actions", "next_observations", "dones", "rewards", "discounts")
    return ReplayBufferSamples(observations=observations, **{name: batch[name] for name in names})


def filled(model):
    """`model` after some steps, with its replay buffer's draws to be replaced."""
    model.learn(60)
    model.max_grad_norm = 1e9
    return model


def test_dqns_loss_is_that_of_sb3():
    model = filled(dqn())
    [part] = probed_networks(model, 0, 32)[1]
    batch = part.subject.draw(32)
    assert len({float(d) for d in batch["discounts"]}) > 1  # n-step returns end early here and there
    found = gradients_of_probes(part, batch, (1.0,))
    model.replay_buffer.sample = lambda *_, **__: batch_for_sb3(batch, batch["observations"])
    wanted = gradients_of_training(model, model.policy.optimizer, lambda: model.train(1, 32))
    assert_equal_gradients(wanted, found)


@pytest.mark.parametrize("kind", [SAC, TD3, DDPG])
def test_actor_and_critic_losses_are_those_of_sb3(kind):
    model = filled(continuous(kind, learning_rate=0.0))  # nothing moves between the critic's step and the actor's
    actor, critic = probed_networks(model, 0, 32)[1]
    batches = [part.subject.draw(32) for part in (actor, critic)]
    assert torch.equal(batches[0]["actions"], batches[1]["actions"])  # the same transitions
    torch.manual_seed(7)
    if kind is SAC:  # what SB3 will draw: for the actions, then for the next ones
        noise = [torch.normal(torch.zeros(32, 2), torch.ones(32, 2)) for _ in range(2)]
    else:
        noise = [torch.zeros(32, 2), torch.empty(32, 2).normal_(0, model.target_policy_noise)]
        noise[1] /= model.target_policy_noise
    for batch in batches:
        batch["noise"], batch["next_noise"] = noise
    found = [gradients_of_probes(part, b, (1.0,)) for part, b in zip((actor, critic), batches, strict=True)]
    model.replay_buffer.sample = lambda *_, **__: batch_for_sb3(batches[0], batches[0]["observations"])
    model._n_updates = 1  # TD3's actor moves at every other update
    wanted = []
    for part in (actor, critic):
        torch.manual_seed(7)
        model._n_updates = 1
        wanted.append(gradients_of_training(model, part.optimizer, lambda: model.train(1, 32)))
    for one, other in zip(wanted, found, strict=True):
        assert_equal_gradients(one, other)


def test_off_policy_targets_against_a_loop():
    model = filled(dqn())
    [part] = probed_networks(model, 0, 16)[1]
    batch = part.subject.draw(16)
    with torch.no_grad():
        targets = part.subject.prepare(batch)[2]
    for row in range(16):
        with torch.no_grad():
            best = max(model.q_net_target(batch["next_observations"][row : row + 1])[0].tolist())
        factor = float(batch["discounts"][row]) * (1 - float(batch["dones"][row]))
        assert float(targets[row]) == pytest.approx(float(batch["rewards"][row]) + factor * best, rel=1e-5, abs=1e-6)


def test_a2c_gathers_rollouts_until_there_are_enough():
    model = A2C("MlpPolicy", worlds(lambda: RandomWorld(box(4), box(2)), 2), **on(n_steps=5))
    source, _ = probed_networks(model, 0, 32)
    seen = []

    class Keep(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            source.keep()
            seen.append(None if (batch := source.draw(32)) is None else len(batch["returns"]))

    model.learn(50, callback=Keep())
    assert seen == [None, None, None, 32, 32]


def test_everything_goes_to_sb3s_logger(tmp_path, capsys):
    model = ppo(vf_coef=1.0, clip_range_vf=None)
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "csv", "json", "tensorboard"]))
    callback = PlasticityCallback(100, ("all",), samples=64, heavy_factor=1, heavy_samples=8, verbose=1)
    model.learn(240, callback=callback)
    printed = capsys.readouterr().out
    assert "probes at step 160" in printed and "dormant units, tau .025" in printed
    assert "probes/" not in printed and "srank" not in printed and len(printed.splitlines()) < 80

    rows = [row for row in csv.DictReader((tmp_path / "progress.csv").open()) if row["probes/weight_norm/total"]]
    assert [int(row["time/total_timesteps"]) for row in rows] == [160, 240]  # due at 100; the last at the end
    lines = [json.loads(line) for line in (tmp_path / "progress.json").open()]
    lines = [line for line in lines if "probes/weight_norm/total" in line]
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = {
        "probes/dormant_fraction/tau=0.025/mlp_extractor.policy_net.2",
        "probes_reference/srank/centred/mlp_extractor.value_net.2",
        "probes_fresh/effective_rank/raw/mlp_extractor.policy_net.2",
        "probes/target/mean/critic",
        "probes/gradient_norm/total/actor",
        "probes/ntk/value/rank/critic",
        "probes/churn/policy_kl",
        "probes/adam/update_ratio",
    }
    assert wanted <= scalars and wanted <= lines[0].keys() and wanted <= rows[0].keys()
    assert not any("plasticity/" in tag for tag in scalars)
    assert [event.step for event in events.Scalars("probes/weight_norm/total")] == [160, 240]
    assert [event.step for event in events.Scalars("probes/churn/policy_kl")] == [160]
    assert "probes/unit_scores/mlp_extractor.policy_net.0" in events.Tags()["histograms"]
    assert "probes/ntk/value/critic" in events.Tags()["images"]
    assert events.Scalars("train/loss")  # SB3's own lines are there as ever
    last = events.Scalars("probes/weight_norm/total")[-1].value
    norms = [float(p.detach().double().square().sum()) for p in model.policy.parameters()]
    assert last == pytest.approx(sum(norms) ** 0.5, rel=1e-5)


def test_the_latest_rollout_is_measured_and_the_next_update_followed():
    model, wanted = ppo(learning_rate=0.01), {}
    callback = PlasticityCallback(80, ("values", "churn"), samples=80)

    def keep_weights(*_):
        wanted.setdefault("after", copy.deepcopy(model.policy.state_dict()))

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            wanted["returns"] = float(model.rollout_buffer.returns.mean())
            wanted["before"] = copy.deepcopy(model.policy.state_dict())
            wanted.pop("after", None)

    model.policy.optimizer.register_step_post_hook(keep_weights)
    model.learn(160, callback=CallbackList([callback, Look()]))
    observations = callback._parts[0].prober.reference["observations"]
    policies = []
    for when in ("before", "after"):
        model.policy.load_state_dict(wanted[when])
        policies.append(model.policy.get_distribution(observations).distribution)
    with torch.no_grad():
        kl = float(torch.distributions.kl_divergence(*policies).mean())
    assert kl > 1e-6
    assert callback.latest["probes/churn/policy_kl"] == pytest.approx(kl, rel=1e-3)
    assert callback.latest["probes/target/mean/critic"] == pytest.approx(wanted["returns"], rel=1e-4)


def test_probes_come_before_the_update_that_is_due():
    model, order = dqn(), []
    train = model.train
    model.train = lambda **kwargs: (order.append(("update", model.num_timesteps)), train(**kwargs))
    callback = PlasticityCallback(20, ("weights", "churn"), samples=8)
    measure = callback._measure
    callback._measure = lambda boundary: (order.append(("probe", model.num_timesteps)), measure(boundary))
    model.learn(80, callback=callback)
    assert [step for what, step in order if what == "probe"] == [20, 40, 60, 80, 80]
    assert order.index(("probe", 60)) < order.index(("update", 60))


def test_learning_goes_on_with_the_same_reference_batch():
    model, callback = dqn(), PlasticityCallback(20, ("units",), samples=8)
    model.learn(60, callback=callback)
    reference = callback._parts[0].prober.reference
    model.learn(60, callback=callback, reset_num_timesteps=False)
    assert callback._parts[0].prober.reference is reference
    model.learn(60, callback=callback)  # a new start
    assert callback._parts[0].prober.reference is not reference


def test_refit_probes_work_on_policies_that_have_acted():
    model = ppo(box(2))
    model.learn(80)
    [part] = probed_networks(model, 0, 32)[1]
    copy.deepcopy(part.subject.network)  # SB3's own policy cannot be copied now
    fresh = part.subject.fresh()
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in part.subject.network.parameters()]
    assert not same(list(fresh.parameters()), list(part.subject.fresh().parameters()))


def test_what_is_not_supported_is_refused():
    with pytest.raises(ValueError, match="samples = 0: must be at least 1"):
        PlasticityCallback(samples=0)
    with pytest.raises(ValueError, match="probes = 'dormancy': must be default, all, none or some of units"):
        PlasticityCallback(probes="dormancy")
    callback = PlasticityCallback(10)
    model = PPO("MultiInputPolicy", SimpleMultiObsEnv(), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match="observation space = Dict: must be Box, Discrete"):
        model.learn(8, callback=callback)
    with pytest.raises(ValueError, match="use_sde = True: must be False"):
        ppo(box(2), use_sde=True).learn(8, callback=callback)

    class Other(DQN):
        pass

    Other("MlpPolicy", worlds(identity), **off()).learn(8, callback=PlasticityCallback(100, samples=4))

    class Unknown(OnPolicyAlgorithm):
        pass

    settings = {"gamma": 0.9, "gae_lambda": 1.0, "ent_coef": 0.0, "vf_coef": 1.0, "max_grad_norm": 1.0}
    policy = {"policy": "MlpPolicy", "policy_kwargs": None, "use_sde": False, "sde_sample_freq": -1}
    Unknown.policy_aliases = PPO.policy_aliases
    unknown = Unknown(env=worlds(identity), learning_rate=1e-3, n_steps=4, device="cpu", **policy, **settings)
    with pytest.raises(ValueError, match="model = Unknown: must be DQN, PPO, A2C, SAC, TD3 or DDPG"):
        unknown.learn(4, callback=callback)


def test_too_few_samples_are_told():
    with pytest.warns(UserWarning, match="no probe was taken: there were never 512 samples"):
        dqn().learn(20, callback=PlasticityCallback(10))


def test_none_measures_nothing():
    callback = PlasticityCallback(10, "none")
    dqn().learn(60, callback=callback)
    assert callback.latest == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": "10k"}, "every = '10k': must be a whole number"),
        ({"every": None}, "every = None: must be a whole number"),
        ({"every": float("nan")}, "every = nan: must be a whole number"),
        ({"every": float("inf")}, "every = inf: must be a whole number"),
        ({"every": True}, "every = True: must be a whole number"),
        ({"samples": 2.5}, "samples = 2.5: must be a whole number"),
        ({"heavy_samples": -3}, "heavy_samples = -3: must be at least 1"),
        ({"heavy_factor": "2"}, "heavy_factor = '2': must be a whole number"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"seed": None}, "seed = None: must be a whole number"),
        ({"probes": None}, "probes = None: must be a list of names, or one: default, all, none or some of units"),
        ({"probes": {"units": True}}, "probes = {'units': True}: must be a list of names"),
        ({"probes": ["units", 3]}, "probes = 3: must be default, all, none or some of units"),
    ],
)
def test_what_is_no_setting_is_told_in_a_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        PlasticityCallback(**settings)


def test_whole_numbers_may_be_written_as_floats():
    model, callback = dqn(), PlasticityCallback(every=2e1, probes="units", samples=np.int64(8))
    assert callback.numbers["every"] == 20 and isinstance(callback.numbers["every"], int)
    model.learn(60, callback=callback)
    assert callback.latest
