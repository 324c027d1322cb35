"""ImageMDP-v0: image classification as a decision process (Lyle et al. 2023, arXiv 2303.01486, section 3.2); see
envs/image_mdp.py."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from envs.family import Backend, Family, Options, Parts, WorldInfo, one_of, require

if TYPE_CHECKING:
    from envs.config import WorldConfig
    from envs.tasks import TaskLaw, TaskSchedule

IMAGE_MDP = "ImageMDP-v0"
STEP_LIMIT = 100
"""The image MDP never ends by itself; cut here (and bootstrapped), a return is the percentage of right actions (but in
the sparse variant, where only the last class pays)."""


@dataclass(frozen=True)
class ImageConfig:
    """ImageMDP-v0 (Lyle et al. 2023, section 3.2): states are classes, seen as images; an action names a class."""

    variant: Literal["true_label", "random_label", "sparse", "bandit"] = "true_label"
    """true_label: reward 1 for the right class, next state random; random_label: the same with random labels; sparse:
    reward in the last class alone, a right action leads to the next class; bandit: images drawn independently."""
    num_images: int = 0
    """Use only so many images, as many of each class as there can be; 0: all."""
    redraw: float = 1.0
    """Change 'labels': share of the images whose labels are drawn anew at a task change, in (0, 1]."""

    def __post_init__(self) -> None:
        variants = ("true_label", "random_label", "sparse", "bandit")
        require(self.variant in variants, "image.variant", self.variant, one_of(variants))
        require(self.num_images >= 0, "image.num_images", self.num_images, "must be at least 0 (0: all)")
        require(0.0 < self.redraw <= 1.0, "image.redraw", self.redraw, "must be in (0, 1]")


@dataclass(frozen=True)
class ImageOptions(Options):
    """What ImageMDP-v0 shows, and its rules."""

    where: ClassVar[str] = IMAGE_MDP
    dataset: str = "fashion_mnist_test"
    """ImageMDP-v0: fashion_mnist_test (10,000 images, part of this package); mnist, fashion_mnist or cifar10 (training
    images, downloaded once); or the path of an .npz with arrays images and labels."""
    dataset_sha256: str = ""
    """ImageMDP-v0 with an .npz: its SHA-256, recorded when a run begins; one that has changed since is refused, unless
    --dataset names it again."""
    image: ImageConfig = ImageConfig()
    """ImageMDP-v0's rules."""

    def check(self) -> None:
        digits = len(self.dataset_sha256) in (0, 64) and not self.dataset_sha256.strip("0123456789abcdef")
        require(digits, "dataset_sha256", self.dataset_sha256, "must be 64 hexadecimal digits, or empty")


class ImageMDP(Family):
    """See the module."""

    name = "image_mdp"
    worlds = IMAGE_MDP
    ids = registered = (IMAGE_MDP,)
    backends = ("native",)
    saved_exactly = backends
    options = (ImageOptions,)
    own_changes: ClassVar = {"labels": IMAGE_MDP}
    usual_change = "labels"
    lives = False
    observes = "pixels"
    bytes_each = 2**7
    drawn_by = "native"
    pictures_a_second = 4  # slow enough to read a picture

    def check_files(self, config: WorldConfig) -> None:
        from envs.datasets import dataset_size, require_content

        require_content(config.dataset, config.dataset_sha256)
        count, _, classes = dataset_size(config.dataset)
        chosen = config.image.num_images or count
        allowed = f"must be between {classes} and {count}, or 0 for all"
        require(classes <= chosen <= count, "image.num_images", config.image.num_images, allowed)

    def settled(self, config: WorldConfig, given: Collection[str]) -> WorldConfig:
        """The absolute path of an ``.npz``, so that it is found from elsewhere, and the file's SHA-256 where that is
        not known yet, or is to be taken anew. ValueError: there is no such file."""
        from envs import npz

        anew = "dataset" in given and "dataset_sha256" not in given
        if not config.dataset.endswith(".npz"):
            return replace(config, dataset_sha256="") if anew else config
        try:
            path = Path(config.dataset).absolute()
        except FileNotFoundError:
            why = "the current directory is gone"
            raise npz.refusal(config.dataset, why, "must be an absolute path") from None
        known = "" if anew else config.dataset_sha256
        return replace(config, dataset=str(path), dataset_sha256=known or npz.sha256_of(path, config.dataset))

    def describe(self, config: WorldConfig) -> WorldInfo:
        from envs.datasets import dataset_size

        _, shape, classes = dataset_size(config.dataset)
        return self.info(config, shape, "uint8", num_actions=classes)

    def build(self, config: WorldConfig, backend: Backend, schedule: Callable[[TaskLaw], TaskSchedule]) -> Parts:
        """See `Family.build`. Whatever else may change, the labels are those of the first task (random ones in the
        variant of that name)."""
        import numpy as np

        from envs.datasets import load_dataset, require_content
        from envs.image_mdp import ImagePool, LabelLaw, balanced
        from envs.tasks import TaskSchedule

        require_content(config.dataset, config.dataset_sha256)
        data = balanced(load_dataset(config.dataset), config.image.num_images)
        pool = ImagePool(data, config.image.variant, config.num_envs)
        law = LabelLaw(data.labels, data.num_classes, config.image.variant, config.image.redraw)
        if config.change in self.own_changes:
            schedule(law)
        else:
            seed = backend.seed if config.task.seed is None else config.task.seed
            pool.enter(np.arange(config.num_envs), TaskSchedule(law, period=0, seed=seed).current)
        return Parts(pool, np.asarray, pool.single_observation_space, config.max_episode_steps or STEP_LIMIT)


FAMILY = ImageMDP()
