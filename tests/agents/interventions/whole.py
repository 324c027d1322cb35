"""What the tests of surgeries on whole tensors share: patients, small agents, and a run that is broken off."""

import copy
import io

import torch

from agents import C51Config, DQNConfig, PPOConfig, build_agent
from agents.clock import Clock
from agents.interventions.base import Forward
from agents.randomness import Generators
from tests.agents.helpers import CONTINUOUS, CPU, SMALL, SMALL_IMAGE, VECTOR, NoiseWorld, drive, same_tree
from tests.agents.interventions.models import MODELS, Patient

VALUE = {"network": SMALL, "learning_starts": 16, "buffer_size": 300, "batch_size": 8, "replay_ratio": 1.0}
VALUE |= {"target_period": 7}
AGENTS = {
    "dqn": (DQNConfig(**VALUE), VECTOR),
    "c51 on images": (C51Config(**VALUE), SMALL_IMAGE),
    "ppo": (PPOConfig(network=SMALL, rollout_steps=8, update_epochs=2), VECTOR),
    "ppo, two torsos": (PPOConfig(network=SMALL, rollout_steps=8, update_epochs=2, shared_torso=False), CONTINUOUS),
}


def agent_with(kind, *interventions, seed=0):
    config, spaces = AGENTS[kind]
    return build_agent(config, spaces, 2, Generators(seed), CPU, interventions=interventions)


def driven(kind, *interventions, ticks=24):
    """An agent after a few dozen gradient steps."""
    return drive(agent_with(kind, *interventions), NoiseWorld(AGENTS[kind][1], 2), ticks)


def operated(kind, intervention, steps=3, seed=0, **adam):
    """A patient with the intervention attached as the lifecycle does, then trained for a few steps."""
    patient = Patient(*MODELS[kind], steps=0, interventions=[intervention], seed=seed, **adam)
    intervention.part_of = getattr(patient.network, "part_of", lambda name: "encoder")
    intervention.layers = tuple(layer for layer in patient.layers if intervention.within(layer.name))
    intervention.attach({"online": patient.network, "target": patient.target}, Generators(0))
    for _ in range(steps):
        patient.train()
    return patient


def stepped(patient, intervention):
    """As the lifecycle does after the very first gradient step, at step 1."""
    intervention.every_step(patient.surgery, Forward(patient.network, patient.batch, {}), {})
    if intervention.timing is not None and intervention.timing.due(Clock(1, 1), None):
        intervention.intervene(patient.surgery, Clock(1, 1))


def continues_alike(kind, make, before=20, after=5):
    """Whether a second DQN or C51, given the first one's state through a file, makes the same next gradient steps."""
    first = driven(kind, *make(), ticks=before)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = agent_with(kind, *make(), seed=1)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.generators.load_state_dict(first.generators.state_dict())
    second.replay = copy.deepcopy(first.replay)
    for agent in (first, second):
        for _ in range(after):
            agent.clock.steps += 2
            agent.update()
        agent.on_task_change()
        agent.update()
    return same_tree(first.state_dict(), second.state_dict())
