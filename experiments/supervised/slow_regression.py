"""The slowly-changing regression of Dohare et al. 2024, by plain SGD with one example a step.

The input has m = 20 bits and a constant. The last m - f = 5 bits are drawn anew for every example; of the f = 15 slow
ones a single bit flips after every `task_steps` examples (10,000 in the paper, whose Nature version flips one; an older
default draws all). The target is that of a fixed network of 100 linear threshold units: weights are 1 or -1, and a
unit's threshold is (m + 1) beta - S, S the number of its negative weights, beta .7. The learner has one hidden layer of
`width` units (5 in the paper), Kaiming-uniform weights, and half the squared error is minimised.
"""

import math

import numpy as np

from experiments.supervised.config import SupervisedConfig

BITS, SLOW, TARGET_UNITS, BETA = 20, 15, 100, 0.7
LOOKS = 10


class Target:
    """The function that is to be learned; inputs float64 [n, BITS + 1], the last one the constant 1."""

    def __init__(self, random: np.random.Generator) -> None:
        self.inner = random.choice([-1.0, 1.0], size=(BITS + 1, TARGET_UNITS))
        self.outer = random.choice([-1.0, 1.0], size=TARGET_UNITS)
        negative = (self.inner < 0).sum(axis=0)
        self.thresholds = (BITS + 1) * BETA - negative

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Targets [n]."""
        return ((inputs @ self.inner) > self.thresholds) @ self.outer


class Inputs:
    """Examples task by task."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.slow = random.integers(2, size=SLOW).astype(float)

    def task(self, index: int, count: int) -> np.ndarray:
        """`count` inputs of task `index`, [count, BITS + 1]; before all but the first a slow bit flips."""
        if index:
            place = self.random.integers(SLOW)
            self.slow[place] = 1 - self.slow[place]
        fast = self.random.integers(2, size=(count, BITS - SLOW)).astype(float)
        return np.concatenate([np.broadcast_to(self.slow, (count, SLOW)), fast, np.ones((count, 1))], axis=1)


class Network:
    """One hidden layer, or none where the activation is linear, learning by SGD."""

    def __init__(self, config: SupervisedConfig, random: np.random.Generator) -> None:
        self.activation, self.rate, self.l2 = config.activation, config.learning_rate, config.l2
        units = BITS + 1 if self.activation == "linear" else config.width
        gain = {"relu": math.sqrt(2), "tanh": 5 / 3, "linear": 1.0}[self.activation]
        bound = gain * math.sqrt(3 / (BITS + 1))
        self.inner = random.uniform(-bound, bound, size=(config.width, BITS + 1))
        bound = math.sqrt(3 / units)
        self.outer = random.uniform(-bound, bound, size=units)
        self.bias = 0.0

    def hidden(self, x: np.ndarray) -> np.ndarray:
        """What goes into the output for one input [BITS + 1] or several [n, BITS + 1]."""
        if self.activation == "linear":
            return x
        before = x @ self.inner.T
        return np.tanh(before) if self.activation == "tanh" else np.maximum(before, 0.0)

    def learn(self, x: np.ndarray, y: float) -> float:
        """One step on (x, y); the squared error before it."""
        hidden = self.hidden(x)
        error = float(hidden @ self.outer) + self.bias - y
        if self.activation != "linear":
            slope = 1 - hidden**2 if self.activation == "tanh" else (hidden > 0).astype(float)
            back = error * self.outer * slope
            self.inner -= self.rate * (np.outer(back, x) + self.l2 * self.inner)
        self.outer -= self.rate * (error * hidden + self.l2 * self.outer)
        self.bias -= self.rate * error
        return error * error


def train(config: SupervisedConfig, writer) -> None:
    """Make the run; `writer` is a `training.Writer`. Raises FloatingPointError where SGD diverges."""
    drawing = [np.random.default_rng([config.seed, place]) for place in (17, 18, 19)]
    target, inputs, network = Target(drawing[0]), Inputs(drawing[1]), Network(config, drawing[2])
    step = 0
    for index in range(config.tasks):
        rows = inputs.task(index, config.task_steps)
        wanted, begun = target(rows), step
        for part in range(LOOKS):
            chosen = range(part * config.task_steps // LOOKS, (part + 1) * config.task_steps // LOOKS)
            errors = [network.learn(rows[i], wanted[i]) for i in chosen]
            step += len(errors)
            found = {"train/error": float(np.mean(errors))} if errors else {}
            if not np.isfinite(list(found.values())).all():
                raise FloatingPointError(f"SGD has diverged by step {step:,}: the squared error is not finite")
            if part == LOOKS - 1 and config.activation != "linear":
                active = network.hidden(rows)
                silent = (
                    (active > 0).mean(axis=0) <= 0.01 if config.activation == "relu" else np.abs(active).min(0) > 0.99
                )
                found |= {"features/idle": float(silent.mean()), "weights/norm": float(np.linalg.norm(network.inner))}
            writer.line(step, found)
        writer.task(index, begun, step)
    writer.end("finished", "", step)
