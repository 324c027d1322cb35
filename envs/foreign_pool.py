"""Worlds that other people made, held to gymnasium's API at every reset and step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from envs.errors import WorldError, failed, found, in_short
from envs.forms import ActionForm, Misfit, ObservationForm, action_form, observation_form
from envs.pools import Outcome, PythonPool


@contextmanager
def staying_here() -> Iterator[None]:
    """Whatever working directory the code within goes to, the process comes back: the run's paths may be relative."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted: there is nowhere to come back to
        here = None
    try:
        yield
    finally:
        if here is not None and _elsewhere(here):
            os.chdir(here)


def _elsewhere(here: str) -> bool:
    try:
        return os.getcwd() != here
    except OSError:
        return True


UNKNOWN_LIVES = -1
"""Of an environment that has not said yet how many lives it has."""


class ForeignPool(PythonPool):
    """E environments of which nothing is believed but their spaces.

    Observations and actions go through the forms of forms.py, so the spaces here are those that agents see. What does
    not fit the promised shape or type is an error that names the environment, what was expected and what was found;
    what lies outside the promised bounds is said once. Infos may hold anything or be none; `lives` alone is read, where
    it is a count: an environment that says nothing keeps those that it had. Arrays that an environment writes to again
    are copied.

    Args:
        make_one: builds one environment.
        num_envs: E.
        env: the world's name, for errors.
        tell: what is done with a warning.

    Raises:
        ValueError: agents cannot act in its spaces, or the environments differ in them.
    """

    def __init__(
        self,
        make_one: Callable[[], Any],
        num_envs: int,
        env: str,
        tell: Callable[[str], None] = lambda sentence: print(f"note: {sentence}", file=sys.stderr),
    ) -> None:
        super().__init__(make_one, num_envs, env)
        try:
            self.observation_form, self.action_form = self._forms()
        except BaseException:
            with suppress(WorldError):
                self.close()
            raise
        self.single_observation_space = self.observation_form.space
        self.single_action_space = self.action_form.space
        self.notes = tuple(note for note in (self.observation_form.note, self.action_form.note) if note)
        space = self.single_observation_space
        self._bounds = (space.low, space.high) if space.dtype.kind == "f" else None
        self._tell = tell
        self._lives = np.full(num_envs, UNKNOWN_LIVES, dtype=np.int64)
        self._lives_told = False

    def _forms(self) -> tuple[ObservationForm, ActionForm]:
        """Those of the spaces that all environments have."""
        spaces = [(one.observation_space, one.action_space) for one in self.envs]
        for i, pair in enumerate(spaces):
            for kind, first, its in zip(("observations", "actions"), spaces[0], pair, strict=True):
                if its != first:
                    words = f"{in_short(str(its), 100)}, environment 0's are {in_short(str(first), 100)}"
                    raise ValueError(f"env = {self.env!r}: all environments must be alike: {i}'s {kind} are {words}")
        return observation_form(self.env, spaces[0][0]), action_form(self.env, spaces[0][1])

    def _reset(self, ids: np.ndarray, seed: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        observations = self._rows(len(ids))
        for row, i in enumerate(ids):
            own = None if seed is None else seed + int(i)
            with staying_here():
                result = self._call(i, self.at_reset, self.envs[i].reset, seed=own)
            if not isinstance(result, tuple | list) or len(result) != 2:
                expected = "(observation, info) was expected (the old Gym API gave an observation alone)"
                raise self._broken(i, self.at_reset(i), f"{found(result)}, where {expected}")
            self._read_observation(observations, row, i, result[0], self.at_reset)
            self._lives[i] = UNKNOWN_LIVES
            self._read_lives(i, result[1])
        return self._checked_bounds(observations, self.at_reset), self._told_lives(ids)

    def advance(self, actions: np.ndarray, ids: np.ndarray | None = None) -> Outcome:
        ids = self._all if ids is None else ids
        observations, rewards = self._rows(len(ids)), np.empty(len(ids))
        ends = np.empty((2, len(ids)), dtype=bool)
        with staying_here():
            for row, (i, action) in enumerate(zip(ids.tolist(), np.asarray(actions), strict=True)):
                result = self._step(row, i, self.action_form.write(action))
                observation, reward, terminated, truncated, info = result
                self._read_observation(observations, row, i, observation, self.at_step)
                rewards[row] = reward if type(reward) is float else self._number(i, row, reward)
                ends[0, row] = self._truth(i, row, "terminated", terminated)
                ends[1, row] = self._truth(i, row, "truncated", truncated)
                if type(info) is not dict or info:
                    self._read_lives(i, info)
        observations = self._checked_bounds(observations, self.at_step)
        self.steps += len(ids)
        return Outcome(observations, rewards, ends[0], ends[1], self._told_lives(ids), {})

    def _step(self, row: int, i: int, action: Any) -> tuple | list:
        """What the environment's step gave: five values."""
        try:
            result = self.envs[i].step(action)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a world may also call sys.exit, or panic in another language
            raise failed(self.env, i, self.at_step(row), error) from error
        if isinstance(result, tuple | list) and len(result) == 5:
            return result
        expected = "(observation, reward, terminated, truncated, info) was expected"
        old = " (the old Gym API gave four values)" if isinstance(result, tuple) and len(result) == 4 else ""
        raise self._broken(i, self.at_step(row), f"{found(result)}, where {expected}{old}")

    believed = False

    def carried(self) -> dict[str, Any]:
        said = self._bounds is None and self.single_observation_space.dtype.kind == "f"
        return {**super().carried(), "bounds_told": said, "lives_told": self._lives_told}

    def carry(self, before: dict[str, Any]) -> None:
        super().carry(before)
        self._bounds = None if before["bounds_told"] else self._bounds
        self._lives_told = before["lives_told"]

    def render(self) -> tuple[np.ndarray, ...]:
        with staying_here():
            images = super().render()
        for i, image in enumerate(images):
            if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
                words = f"{found(image)}, where an image [height, width, 3] was expected"
                raise self._broken(i, "when it was to be drawn", words)
        return images

    def _rows(self, count: int) -> np.ndarray:
        space = self.single_observation_space
        return np.empty((count, *space.shape), space.dtype)

    def _broken(self, i: int, moment: str, words: str) -> WorldError:
        return WorldError(f"env = {self.env!r}: environment {int(i)} gave {moment} {words}")

    def _read_observation(self, rows: np.ndarray, row: int, i: int, value: Any, moment: Callable[[int], str]) -> None:
        try:
            array = self.observation_form.read(value)
            if array.dtype == rows.dtype:
                rows[row] = array
            else:
                with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: nobody learns from it
                    rows[row] = array
        except Misfit as misfit:
            raise self._broken(i, moment(row), f"an observation that does not fit its space: {misfit}") from misfit

    def _number(self, i: int, row: int, reward: Any) -> float:
        try:
            if np.ndim(reward) == 0 and not isinstance(reward, str | bytes | complex | np.complexfloating):
                return float(reward)
        except Exception:  # told below, whatever it is that this object cannot do
            pass
        raise self._broken(i, self.at_step(row), f"as reward {found(reward)}, where a single number was expected")

    def _truth(self, i: int, row: int, name: str, value: Any) -> bool:
        if value is True or value is False or isinstance(value, np.bool_):
            return value
        try:
            if np.ndim(value) == 0 and value in (0, 1):
                return bool(value)
        except Exception:
            pass
        raise self._broken(i, self.at_step(row), f"as {name} {found(value)}, where True or False was expected")

    def _read_lives(self, i: int, info: Any) -> None:
        lives = info.get("lives") if isinstance(info, dict) else None
        if (
            lives is not None
            and isinstance(lives, int | np.integer)
            and not isinstance(lives, bool)
            and 0 <= lives < 2**62
        ):
            self._lives[i] = lives
            self._lives_told = True

    def _told_lives(self, ids: np.ndarray) -> np.ndarray | None:
        return self._lives[ids] if self._lives_told else None

    def _checked_bounds(self, observations: np.ndarray, moment: Callable[[int], str]) -> np.ndarray:
        """`observations`, and a note the first time that one lies outside its space."""
        if self._bounds is None:
            return observations
        low, high = self._bounds
        outside = (observations < low) | (observations > high)
        if np.count_nonzero(outside):
            outside &= np.isfinite(observations)  # what is infinite ends the run, with words of the agent's
            if not outside.any():
                return observations
            self._bounds = None
            row, *place = (int(index) for index in np.argwhere(outside)[0])
            value, least, most = observations[(row, *place)], low[tuple(place)], high[tuple(place)]
            self._tell(
                f"env = {self.env!r}: an observation {moment(row)} holds {value:g} outside its bounds [{least:g}, "
                f"{most:g}]; it is taken as it is, and this is not said again"
            )
        return observations
