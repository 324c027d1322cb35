"""Image classification as a decision process (Lyle et al. 2023, arXiv 2303.01486, section 3.2).

The states are the K classes, seen as images: the observation is an image drawn uniformly among those whose current
label is the state. An action names a class. In the variant

- ``true_label``: reward 1 where action == state, and the next state is drawn uniformly;
- ``random_label``: the same rules, but each image has a label drawn at random;
- ``sparse``: reward 1 only where action == state == K - 1. A wrong action leads to a uniformly drawn state, the right
  one to state + 1. After the last class comes class 0: the paper does not say, this is our reading;
- ``bandit``: reward 1 where action == state, and each image is drawn uniformly from all (the contextual bandit of Lyle
  et al. 2024, arXiv 2402.18762); the optimal value is 1 / (1 - gamma) everywhere, so gamma sets the target mean.

The process never ends by itself. What changes from task to task is the labels, see `LabelLaw`. Where a class has no
image left, states are drawn among the classes that have one, and in ``sparse`` the next class that has one follows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box, Discrete

from envs.datasets import Dataset
from envs.pools import Outcome, TaskPool
from envs.snapshots import generator_state, new_generator
from envs.task_laws import Chain
from envs.tasks import Task, fingerprint, generator

SCREEN = 280
"""About the height of a rendered image, in pixels."""


class LabelLaw(Chain):
    """Which label each image has in each task; implements `envs.tasks.TaskLaw`, with the labels, int64 [N], as content.

    Task 0 has the true labels; with variant ``random_label`` it has labels drawn uniformly. In each later task
    round(redraw * N) images, drawn without replacement, have labels drawn uniformly anew, which may be the old ones;
    all others keep the label they had in the task before.

    Args:
        labels: the true labels, int [N].
        num_classes: K.
        variant: one of the variants of the image MDP.
        redraw: share of the images whose labels are drawn anew, in (0, 1].

    Raises:
        ValueError: `redraw` is so small that no label would be drawn anew.
    """

    def __init__(self, labels: np.ndarray, num_classes: int, variant: str, redraw: float) -> None:
        self.labels, self.num_classes, self.variant = _frozen(labels), num_classes, variant
        self.redrawn = round(redraw * len(labels))
        if not self.redrawn:
            raise ValueError(f"image.redraw = {redraw!r}: redraws none of {len(labels)} labels / must be greater")

    def first(self, seed: int) -> np.ndarray:
        """The labels of task 0."""
        if self.variant != "random_label":
            return self.labels
        return _frozen(generator(seed, 0).integers(self.num_classes, size=len(self.labels)))

    def following(self, content: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Some labels are drawn anew."""
        chosen = random.choice(len(content), self.redrawn, replace=False)
        labels = content.copy()
        labels[chosen] = random.integers(self.num_classes, size=self.redrawn)
        return _frozen(labels)

    def describe(self, content: np.ndarray) -> dict[str, float | int | str]:
        """``labels``: a fingerprint; ``true_share``: share of the images whose label is the true one."""
        return {"labels": fingerprint(content), "true_share": float(np.mean(content == self.labels))}


def _frozen(labels: np.ndarray) -> np.ndarray:
    """A copy, int64, that nobody can write to."""
    labels = np.array(labels, dtype=np.int64)
    labels.setflags(write=False)
    return labels


class _Labelling(NamedTuple):
    """One task's labels and what follows from them; stacked, each array has a leading axis of L labellings."""

    labels: np.ndarray  # int64 [N]
    order: np.ndarray  # int64 [N], the images sorted by label
    begin: np.ndarray  # int64 [K], where each class begins in `order`
    size: np.ndarray  # int64 [K], the number of its images
    present: np.ndarray  # int64 [K], the classes that have images, then zeros
    kinds: np.ndarray  # int64 [], the number of classes that have images
    successor: np.ndarray  # int64 [K], the next class that has images, in a circle


def _labelling(labels: np.ndarray, num_classes: int) -> _Labelling:
    size = np.bincount(labels, minlength=num_classes)
    present = np.flatnonzero(size)
    # The first present class above k; above the last one, the circle closes.
    successor = present[np.searchsorted(present, np.arange(num_classes), side="right") % len(present)]
    padded = np.zeros(num_classes, dtype=np.int64)
    padded[: len(present)] = present
    # 16 bits are sorted by radix, six times as fast.
    narrow = labels.astype(np.int16) if num_classes < 2**15 else labels
    order, begin = np.argsort(narrow, kind="stable"), np.cumsum(size) - size
    return _Labelling(labels, order, begin, size, padded, np.int64(len(present)), successor)


class ImagePool(TaskPool):
    """E image MDPs stepped by array operations; implements `envs.pools.TaskPool`. Rewards are float64.

    All environments draw from one generator, so that what one of them meets depends on E. Without `enter` the labels
    are those of the dataset. A task can change under a running episode: the image stays and its label is another.

    Args:
        dataset: the images, and their true labels.
        variant: ``"true_label"``, ``"random_label"``, ``"sparse"`` or ``"bandit"``, see the module.
        num_envs: E.
    """

    carries_over = True

    def __init__(self, dataset: Dataset, variant: str, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = Box(0, 255, dataset.images.shape[1:], np.uint8)
        self.single_action_space = Discrete(dataset.num_classes)
        self._images, self._num_classes, self._variant = dataset.images, dataset.num_classes, variant
        self._random = np.random.default_rng()
        self._all = np.arange(num_envs)
        self._image = np.zeros(num_envs, dtype=np.int64)  # index of the image that each environment shows
        self._slot = np.zeros(num_envs, dtype=np.int64)  # which labelling each environment is under
        self._keep([_labelling(dataset.labels, dataset.num_classes)])

    def start(self, seed: int | None) -> tuple[np.ndarray, None]:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        return self.restart(self._all)

    def restart(self, ids: np.ndarray) -> tuple[np.ndarray, None]:
        """See `Pool.restart`: a state drawn uniformly (bandit: an image)."""
        if self._variant == "bandit":
            image = self._uniform_image(len(ids))
        else:
            slots = self._slot[ids]
            image = self._image_of(slots, self._state(slots))
        self._image[ids] = image
        return self._images[image], None

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        """See `Pool.advance`: one decision, int [n], in each environment of `ids`."""
        ids = self._all if ids is None else ids
        slots, table = self._slot[ids], self._table
        state = table.labels[slots, self._image[ids]]
        right = np.asarray(actions) == state
        if self._variant == "bandit":
            image = self._uniform_image(len(ids))
        else:
            following = self._state(slots)
            if self._variant == "sparse":
                following = np.where(right, table.successor[slots, state], following)
            image = self._image_of(slots, following)
        rewarded = right & (state == self._num_classes - 1) if self._variant == "sparse" else right
        self._image[ids] = image
        return Outcome(self._images[image], rewarded.astype(np.float64), np.zeros(len(ids), dtype=bool), None, None, {})

    def _below(self, limits: np.ndarray | int, n: int) -> np.ndarray:
        """Integers [n], uniform in [0, limits). Rounding never reaches the limit for limits below 2**53."""
        return (self._random.random(n) * limits).astype(np.int64)

    def _uniform_image(self, n: int) -> np.ndarray:
        return self._below(len(self._images), n)

    def _state(self, slots: np.ndarray) -> np.ndarray:
        """States [n], uniform among the classes that have images."""
        return self._table.present[slots, self._below(self._table.kinds[slots], len(slots))]

    def _image_of(self, slots: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Images [n], each uniform among those of its state."""
        table = self._table
        place = table.begin[slots, state] + self._below(table.size[slots, state], len(slots))
        return table.order[slots, place]

    def enter(self, ids: np.ndarray, task: Task) -> None:
        """See `TaskPool.enter`: the labels ``task.content``, int64 [N], are in force in the environments `ids`."""
        content = task.content
        same = (
            i for i, kept in enumerate(self._kept) if kept.labels is content or np.array_equal(kept.labels, content)
        )
        slot = next(same, len(self._kept))
        new = [_labelling(content, self._num_classes)] if slot == len(self._kept) else []
        self._slot[ids] = slot
        in_use, self._slot = np.unique(self._slot, return_inverse=True)
        if new or len(in_use) < len(self._kept):
            kept = self._kept + new
            self._keep([kept[i] for i in in_use])

    exact = True

    def state_dict(self) -> dict[str, Any]:
        return {"image": self._image.copy(), "random": generator_state(self._random)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._image[:] = state["image"]
        self._random = new_generator(state["random"])

    def _keep(self, kept: list[_Labelling]) -> None:
        self._kept = kept
        self._table = _Labelling(*(np.stack(column) for column in zip(*kept, strict=True)))

    def render(self) -> tuple[np.ndarray, ...]:
        """E RGB images [height, width, 3]: what the agent sees, each pixel a square, about `SCREEN` pixels high."""
        pictures = np.moveaxis(self._images[self._image], 1, 3)
        factor = max(1, round(SCREEN / max(pictures.shape[1:3])))
        large = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
        return tuple(np.ascontiguousarray(np.broadcast_to(one, (*one.shape[:2], 3))) for one in large)


def balanced(dataset: Dataset, num_images: int) -> Dataset:
    """The first `num_images` of a data set, taken in turn from each class; all of them for 0.

    Raises:
        ValueError: there are not so many, or not one for each class.
    """
    if not num_images:
        return dataset
    if not dataset.num_classes <= num_images <= len(dataset.labels):
        allowed = f"between {dataset.num_classes} and {len(dataset.labels)}, or 0 for all"
        raise ValueError(f"image.num_images = {num_images}: must be {allowed}")
    by_class = np.argsort(dataset.labels, kind="stable")
    counts = np.bincount(dataset.labels)
    turn = np.empty(len(by_class), np.int64)
    turn[by_class] = np.arange(len(by_class)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.sort(np.argsort(turn, kind="stable")[:num_images])
    return dataset._replace(images=dataset.images[chosen], labels=dataset.labels[chosen])
