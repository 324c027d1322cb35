"""Worlds that hang, crash, or have processes of their own. Importing this module registers them as NAME-v0."""

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

FAILS_AT = 30
"""The step, counted in each environment."""


class Fails(gym.Env):
    """Ten steps an episode, until `fail` is called."""

    observation_space, action_space, steps, fails_at = Box(-1.0, 1.0, (3,), np.float32), Discrete(2), 0, FAILS_AT

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.fails_at:
            self.fail()
        return np.full(3, self.steps % 10 / 10, np.float32), 1.0, self.steps % 10 == 0, False, {}

    def fail(self):
        raise NotImplementedError


def register(kind):
    if f"{kind.__name__}-v0" not in gym.registry:
        gym.register(f"{kind.__name__}-v0", entry_point=kind)
    return kind


@register
class Raises(Fails):
    def fail(self):
        raise ConnectionError("the simulator has gone")


@register
class Sleeps(Fails):
    def fail(self):
        while True:
            time.sleep(1000)


@register
class Loops(Fails):
    def fail(self):
        while True:
            pass


@register
class Reads(Fails):
    def fail(self):
        os.read(os.pipe()[0], 1)  # nobody will ever write


@register
class Locks(Fails):
    def fail(self):
        lock = multiprocessing.get_context("spawn").Lock()
        lock.acquire()
        lock.acquire()


@register
class HangsInReset(Fails):
    def reset(self, seed=None, options=None):
        if self.steps >= 20:
            time.sleep(1000)
        return super().reset(seed=seed)


@register
class Stubborn(Fails):
    """It catches whatever is thrown at it, and goes on."""

    def fail(self):
        with contextlib.suppress(BaseException):
            time.sleep(1000)


@register
class NativeLock(Fails):
    """It waits for a lock in C, which no signal interrupts."""

    def fail(self):
        library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
        library.pthread_mutex_lock(mutex)
        library.pthread_mutex_lock(mutex)


@register
class NativeLoop(Fails):
    """It computes for minutes in C."""

    def fail(self):
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)


@register
class Slow(Fails):
    """Each step takes a while, and none of them too long."""

    def step(self, action):
        time.sleep(0.02)
        return super().step(action)

    def fail(self):
        pass


def _serve(pipe, dies):
    while pipe.recv() is not None:
        if dies:
            os._exit(9)
        pipe.send(1)


class _HasProcesses(Fails):
    """Two workers that wait for work, and a program beside them; nobody ends them where the world is not closed."""

    def __init__(self):
        context = multiprocessing.get_context("fork")
        self.pipes = []
        for number in range(2):
            ours, theirs = context.Pipe()
            context.Process(target=_serve, args=(theirs, number == 1)).start()
            self.pipes.append(ours)
            theirs.close()
        self.program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])


@register
class WorkerDies(_HasProcesses):
    def fail(self):
        self.pipes[1].send("step")
        self.pipes[1].recv()


@register
class WorkerHangs(_HasProcesses):
    def fail(self):
        self.pipes[0].recv()  # it was not asked anything


@register
class WorkersAndNativeLock(_HasProcesses):
    fail = NativeLock.fail


@register
class Exits(Fails):
    """The process is gone before anybody can say a word."""

    def fail(self):
        os._exit(3)
