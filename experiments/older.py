"""Files of earlier versions, read as today's: the one place that knows what settings were called before. Torch-free."""

from collections.abc import Mapping
from typing import Any

WHEN: dict[tuple[str, str], str | dict[Any, str]] = {
    ("redo", "period"): "every {} gradient steps",
    ("reset", "every_gradient_steps"): "every {} gradient steps",
    ("reset", "every_steps"): "every {} steps",
    ("reset", "at_task_change"): {True: "at task changes"},
    ("plasticity_injection", "at_gradient_step"): "at gradient step {}",
    ("plasticity_injection", "at_step"): "at step {}",
    ("plasticity_injection", "at_task_change"): {True: "at task changes"},
    ("optimizer_reset", "at"): {"target_sync": "at target syncs", "task_change": "at task changes"},
    ("shrink_perturb", "when"): {"task_change": "at task changes", "every_step": "every gradient step"},
}
"""By intervention and parameter, what said when it acts before there was one spelling; null and false said nothing."""


def translated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json holds, in today's words; what is today's already is left as it is. Values are not checked."""
    found = dict(settings)
    world = found.get("world")
    if isinstance(world, dict) and (world.get("env"), world.get("backend")) == ("Ant-v5", "auto"):
        found["world"] = {**world, "backend": "envpool"}  # what it meant before a backend was recorded by its name
    if isinstance(found.get("agent"), dict):
        found["agent"] = _agent(found["agent"], found)
    if isinstance(found.get("interventions"), list):
        found["interventions"] = [_timed(one) if isinstance(one, dict) else one for one in found["interventions"]]
    return found


def _agent(agent: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    agent = dict(agent)
    if settings.get("algorithm") == "ppo":
        agent.setdefault("action_scaling", "off")  # before there was this setting
    anew, run = agent.pop("anneal_per_task", False), settings.get("run")
    if not isinstance(agent.get("learning_rate", {}), dict):
        agent["learning_rate"] = {"start": agent["learning_rate"]}
    steps = agent.pop("anneal_steps", 0)
    if steps:
        whole = isinstance(run, dict) and run.get("steps") == steps and not anew
        agent.setdefault("learning_rate", {})["over"] = "run" if whole else _over(steps, anew)
    if {"start_e", "end_e", "exploration_steps"} & set(agent):
        start, end, steps = agent.pop("start_e", 1.0), agent.pop("end_e", 0.01), agent.pop("exploration_steps", 250_000)
        if not steps and isinstance(start, float) and isinstance(end, float):
            start = end = start + (end - start)  # as it was computed: .09999999999999998 where .1 was asked for
        agent["epsilon"] = {"start": start, "end": end, "over": _over(steps, anew) if steps else "constant"}
    return agent


def _over(steps: object, anew: object) -> str:
    return f"{steps}-steps-of-task" if anew else f"{steps}"


def _timed(one: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an intervention, the time in `when`."""
    found: dict[str, Any] = {}
    for parameter, value in one.items():
        times = WHEN.get((str(one.get("name")), parameter))
        if isinstance(times, str) and type(value) is int:
            found["when"] = times.format(value)
        elif isinstance(times, dict) and isinstance(value, bool | str) and value in times:
            found["when"] = times[value]
        elif times is None or parameter == "when" or value not in (None, False):
            found[parameter] = value
    return found
