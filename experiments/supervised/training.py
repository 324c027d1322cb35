"""One supervised run, from settings to a finished directory."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from agents import losses
from experiments.run_directory import ENDING, made_on, write_json
from experiments.supervised.config import SupervisedConfig, to_json
from experiments.supervised.learner import SupervisedLearner
from experiments.supervised.problems import Problem, Task, problem_of
from plasticity_probes import ntk, ntk_statistics, singular_values
from plasticity_probes.gradients import cosine_matrix

LOOKS = 10
"""Lines of the log a task."""
PICTURED = 128
"""Examples in the kernel's picture."""
PICTURES = "features.pt"


class Writer:
    """Writes a run's directory: config.json, manifest.json, metrics.jsonl, tasks.jsonl, ending.json."""

    def __init__(self, directory: Path, config: SupervisedConfig, command: list[str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.config = directory, config
        for name in ("metrics.jsonl", "tasks.jsonl", ENDING):
            (directory / name).unlink(missing_ok=True)
        write_json(directory / "config.json", to_json(config))
        write_json(directory / "manifest.json", {"command": command, **made_on(torch.device("cpu"))})

    def line(self, step: int, values: dict[str, float]) -> None:
        """Add a line to the log; what is not finite is left out."""
        told = {name: value for name, value in values.items() if math.isfinite(value)}
        self._add("metrics.jsonl", {"step": step, **told})

    def task(self, index: int, first: int, last: int) -> None:
        """Note that a task has ended."""
        self._add("tasks.jsonl", {"task": index, "parameters": {}, "first_step": first, "last_step": last})

    def _add(self, name: str, row: dict[str, Any]) -> None:
        with (self.directory / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def end(self, ending: str, why: str, step: int) -> None:
        """Say how the run ended."""
        write_json(self.directory / ENDING, {"ending": ending, "step": step, "why": why})


def train(config: SupervisedConfig, directory: Path, command: list[str]) -> None:
    """Make the run in `directory`, from its beginning; what a broken-off one has left there is written anew.

    Raises ValueError where the settings cannot be, `NonFiniteError` where something is not finite.
    """
    if config.problem == "slow_regression":
        from experiments.supervised.slow_regression import train as slowly

        slowly(config, Writer(directory, config, command))
        return
    problem, writer = problem_of(config), Writer(directory, config, command)
    learner, step, pictures = None, 0, {}
    for index, task in zip(range(config.tasks), problem.tasks, strict=False):
        last = index == config.tasks - 1
        if learner is not None:
            learner.on_task_change()
        if learner is None or (last and config.anew):
            learner = SupervisedLearner(config, task.images, problem.outputs, problem.loss)
            if config.bias_at_mean:
                torch.nn.init.constant_(learner.network.head.bias, config.target_mean)
            pictures |= _pictures(learner, task, "before") if config.problem == "target_mean" and not index else {}
        begun = step
        for part in range(LOOKS):
            steps = (part + 1) * config.task_steps // LOOKS - part * config.task_steps // LOOKS
            learner.learn(task.images, task.targets, steps, config.walk == "brownian" and not last)
            step += steps
            found = _scores(learner, problem, task)
            if part == LOOKS - 1:
                found |= learner.features(task.images)
                if last and config.problem == "target_mean":
                    pictures |= _pictures(learner, task, "after")
                    found |= _kernel(pictures["after/kernel"])
            writer.line(step, found)
        writer.task(index, begun, step)
    if pictures:
        torch.save(pictures, directory / PICTURES)
    writer.end("finished", "", step)


def _scores(learner: SupervisedLearner, problem: Problem, task: Task) -> dict[str, float]:
    """How well the task has been learned."""
    outputs = learner.outputs(task.images)
    if problem.values is not None:
        error = losses.squared_error(problem.values(outputs), task.targets).mean().item()
        return {"train/error": error, "train/log10_error": math.log10(error + 1e-8)}
    found = {"train/accuracy": _accuracy(outputs, task.targets)}
    if problem.test is not None:
        found["test/accuracy"] = _accuracy(learner.outputs(problem.test.images), problem.test.targets)
    return found


def _accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    return (outputs.argmax(1) == labels).float().mean().item()


def _pictures(learner: SupervisedLearner, task: Task, when: str) -> dict[str, torch.Tensor]:
    """Spectra of the last features, raw and centred, and the empirical tangent kernel of the summed outputs."""
    from plasticity_probes import activations

    features = list(activations(learner.network, task.images).values())[-1].post.flatten(1)
    spectra = {
        f"{when}/spectrum": singular_values(features),
        f"{when}/spectrum_centred": singular_values(features, True),
    }
    return spectra | {f"{when}/kernel": ntk(learner.network, task.images[:PICTURED])}


def _kernel(kernel: torch.Tensor) -> dict[str, float]:
    cosines = cosine_matrix(kernel)
    apart = ~torch.eye(len(kernel), dtype=torch.bool)
    found = {f"ntk/{name}": value.item() for name, value in ntk_statistics(kernel).items()}
    return found | {"ntk/mean_cosine": cosines[apart].mean().item()}
