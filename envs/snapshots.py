"""The exact state of environments that let it be read: gymnasium's Atari games and robots, wrappers included.

States are NumPy arrays, numbers, strings, None, and lists and dicts of these: no object, so nothing is ever unpickled.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

LAGGING = ("xpos", "xipos", "xquat", "xmat", "cfrc_ext", "cinert", "cvel", "qfrc_actuator", "subtree_com")
"""What MuJoCo derives from a state, and rewards and observations read before the next step derives it anew: the stages
of an integrator leave it behind the positions (Ant's first reward would be off by about 20)."""

State = dict[str, Any]


def generator_state(random: np.random.Generator) -> State:
    """Where the random stream stands."""
    state = random.bit_generator.state
    return {**state["state"], "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def set_generator(random: np.random.Generator, state: State) -> None:
    """Put a PCG64 stream where `state` says."""
    inner = {"state": state["state"], "inc": state["inc"]}
    rest = {"has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}
    random.bit_generator.state = {"bit_generator": "PCG64", "state": inner, **rest}


def new_generator(state: State) -> np.random.Generator:
    """A stream that goes on from `state`."""
    random = np.random.Generator(np.random.PCG64(0))
    set_generator(random, state)
    return random


def robot_state(model: Any, data: Any) -> State:
    """A MuJoCo simulation, as far as the next step depends on it."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, integration, kind)
    return {"integration": integration, **{name: getattr(data, name).copy() for name in LAGGING}}


def set_robot(model: Any, data: Any, state: State) -> None:
    """Put a simulation where `state` says."""
    import mujoco

    mujoco.mj_setState(model, data, np.asarray(state["integration"]), mujoco.mjtState.mjSTATE_INTEGRATION)
    for name in LAGGING:
        getattr(data, name)[...] = state[name]


def environment_state(env: Any) -> State:
    """A whole gymnasium environment, wrappers first.

    Raises:
        TypeError: one of the layers may have a state of its own that is not known here.
    """
    return {"layers": [_layer_state(layer) for layer in _layers(env)]}


def set_environment(env: Any, state: State) -> None:
    """Put an environment that was built alike where `state` says."""
    for layer, own in zip(_layers(env), state["layers"], strict=True):
        _set_layer(layer, own)


def spaces_state(spaces: Any) -> list[State | None]:
    """The random streams of spaces that were sampled from."""
    return [space._np_random and generator_state(space._np_random) for space in spaces]


def set_spaces(spaces: Any, states: list[State | None]) -> None:
    """Put the streams of spaces where `states` say."""
    for space, state in zip(spaces, states, strict=True):
        space._np_random = state and new_generator(state)


def _layers(env: Any) -> list[Any]:
    layers = [env]
    while layers[-1] is not layers[-1].unwrapped:
        layers.append(layers[-1].env)
    return layers


def _layer_state(layer: Any) -> State:
    state: State = {"kind": type(layer).__name__}
    own = vars(layer)
    if own.get("_np_random") is not None:
        state["random"] = generator_state(layer._np_random)
    if layer is layer.unwrapped:
        return state | _core_state(layer)
    if state["kind"] not in _WRAPPERS:
        raise TypeError(f"{type(layer).__name__}: what it remembers is not known")
    for name in _WRAPPERS[state["kind"]]:
        value = getattr(layer, name)
        state[name] = [np.array(one) for one in value] if isinstance(value, list | deque) else value
    return state


def _set_layer(layer: Any, state: State) -> None:
    if "random" in state:
        layer._np_random = new_generator(state["random"])
    if layer is layer.unwrapped:
        return _set_core(layer, state)
    for name in _WRAPPERS[state["kind"]]:
        value, kind = state[name], type(getattr(layer, name))
        if kind is deque:
            value = deque((np.array(one) for one in value), maxlen=getattr(layer, name).maxlen)
        setattr(layer, name, [np.array(one) for one in value] if kind is list else value)


_WRAPPERS = {  # what each remembers from one step to the next
    "OrderEnforcing": ("_has_reset",),
    "AtariPreprocessing": ("obs_buffer", "lives", "game_over"),
    "FrameStackObservation": ("obs_queue",),
    "GameStart": (),
    "Sticky": ("last",),
    "HealthyToTheEnd": (),
}
_OF_ROBOTS = ("goal", "goal_pos", "cylinder_pos")  # drawn at a reset


def _core_state(env: Any) -> State:
    if hasattr(env, "ale"):
        return {"ale": np.frombuffer(env.ale.cloneState(include_rng=True).serialize(), np.uint8).copy()}
    drawn = {name: np.array(vars(env)[name]) for name in _OF_ROBOTS if name in vars(env)}
    return {"robot": robot_state(env.model, env.data), **drawn}


def _set_core(env: Any, state: State) -> None:
    if "ale" in state:
        import ale_py

        env.ale.restoreState(ale_py.ALEState(np.asarray(state["ale"]).tobytes()))
        return
    set_robot(env.model, env.data, state["robot"])
    for name in _OF_ROBOTS:
        if name in state:
            setattr(env, name, np.array(state[name]))
