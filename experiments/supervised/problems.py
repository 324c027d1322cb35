"""What is learned in each task of a supervised problem, and how it is scored."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from agents import losses
from envs.datasets import load_dataset
from experiments.supervised.config import SupervisedConfig
from experiments.supervised.learner import Loss

ATOMS, MARGIN = 101, 5.0
"""HL-Gauss's, and how far its support reaches beyond the mean."""
FACTOR = 4
"""Images are blurred by taking the mean of so many times so many pixels."""


class Task(NamedTuple):
    """What is learned for some gradient steps."""

    images: Tensor
    """uint8 [n, channels, height, width]."""
    targets: Tensor
    """int64 [n] labels, or float32 [n] values."""


class Problem(NamedTuple):
    """A sequence of tasks for one kind of network."""

    outputs: int
    loss: Loss
    tasks: Iterator[Task]
    values: "partial[Tensor] | None"
    """From outputs [n, ...] to values [n], in a regression."""
    test: Task | None
    """What is tested on."""


def problem_of(config: SupervisedConfig) -> Problem:
    """The problem that `config` names. ValueError: its images cannot be had, or are too few."""
    data = load_dataset(config.dataset)
    images = torch.from_numpy(data.images[: config.images])
    labels = torch.from_numpy(data.labels[: config.images].astype(np.int64))
    if len(images) < config.images:
        raise ValueError(f"images = {config.images}: must be at most {len(images)}, those of {config.dataset}")
    if config.problem == "random_labels":
        return Problem(data.num_classes, F.cross_entropy, _random_labels(config, images, data.num_classes), None, None)
    if config.problem == "target_mean":
        return _target_mean(config, images)
    if len(data.images) < config.images + config.test_images:
        allowed = f"at most {len(data.images) - config.images}, the images of {config.dataset} that are left"
        raise ValueError(f"test_images = {config.test_images}: must be {allowed}")
    test = Task(
        torch.from_numpy(data.images[-config.test_images :]),
        torch.from_numpy(data.labels[-config.test_images :].astype(np.int64)),
    )
    tasks = iter([_first(config, images, labels, data.num_classes), Task(images, labels)])
    return Problem(data.num_classes, F.cross_entropy, tasks, None, test)


def _random_labels(config: SupervisedConfig, images: Tensor, classes: int) -> Iterator[Task]:
    drawing = np.random.default_rng([config.seed, 7])
    drawn = None
    while True:
        if drawn is None or config.moving:
            drawn = torch.from_numpy(drawing.integers(classes, size=len(images)))
        yield Task(images, drawn)


def _target_mean(config: SupervisedConfig, images: Tensor) -> Problem:
    drawing, mean = np.random.default_rng([config.seed, 11]), config.target_mean
    tasks = (
        Task(images, torch.from_numpy(mean + drawing.standard_normal(len(images))).float()) for _ in range(config.tasks)
    )
    if config.loss == "mse":
        return Problem(1, _squared, tasks, partial(torch.squeeze, dim=1), None)
    support = losses.atoms(-MARGIN, mean + MARGIN, ATOMS)
    values = partial(losses.expected_value, support=support)
    return Problem(ATOMS, partial(_categorical, support=support), tasks, values, None)


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of [batch, 1] beside [batch]."""
    return losses.squared_error(outputs.squeeze(1), targets).mean()


def _categorical(outputs: Tensor, targets: Tensor, support: Tensor) -> Tensor:
    """Mean cross-entropy of logits [batch, atoms] to targets [batch] spread over the support (HL-Gauss)."""
    return losses.cross_entropy(outputs, losses.hl_gauss(targets, support, sigma_bins=0.75)).mean()


def _first(config: SupervisedConfig, images: Tensor, labels: Tensor, classes: int) -> Task:
    """The first of two phases."""
    if config.start == "half":
        return Task(images[: len(images) // 2], labels[: len(images) // 2])
    if config.start == "noisy":
        drawing = np.random.default_rng([config.seed, 13])
        wrong = torch.from_numpy(drawing.permutation(len(labels))[: len(labels) // 2])
        mixed = labels.clone()
        mixed[wrong] = torch.from_numpy(drawing.integers(classes, size=len(wrong)))
        return Task(images, mixed)
    return Task(blurred(images) if config.start == "blurred" else images, labels)


def blurred(images: Tensor) -> Tensor:
    """uint8 images [n, c, h, w] of which `FACTOR` by `FACTOR` pixels have become their mean (Achille et al. 2019
    downsample by 4 and interpolate back)."""
    small = F.avg_pool2d(images.float(), FACTOR, ceil_mode=True)
    return F.interpolate(small, size=images.shape[2:], mode="nearest").round().to(torch.uint8)
