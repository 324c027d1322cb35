"""When something is done now and then: one value, one spelling, one sentence where it is none. Torch-free."""

import re
from typing import Literal, Self

from agents.clock import Clock
from agents.spelling import Spelled, whole_number

WRITTEN = re.compile(
    r"every (?:(?P<every>(?!gradient)\S+) )?(?P<of>gradient )?steps?"
    r"|at (?P<one>gradient )?step (?P<at>\S+)"
    r"|at (?:a )?(?P<event>task change|target sync)s?"
)


class When(Spelled):
    """A time: "every 1000 gradient steps", "every 20000 steps", "at step 100000", "at
    gradient step 500", "at task changes", "at target syncs" (PPO, which has no target network: as an update phase
    begins). Hyphens or underscores may stand for the blanks, and 1e6 or 1_000_000 for a number; equal times are equal.

    Steps are looked at after gradient steps: "every N steps" is the first gradient step at or beyond each multiple of
    N, once however many were passed, "at step N" the first one at or beyond N. The multiples that passed before there
    was anything to learn from do not count.
    """

    metavar = "WHEN"
    allowed = (
        "every N gradient steps, every N steps, at step N, at gradient step N, at task changes or at target syncs, "
        "N a whole number in [1, 10**12)"
    )
    moment: Literal["gradient step", "task change", "target sync"]
    """What has just happened when it may be due."""
    number: int
    """N, where there is one, or 1."""
    repeats: bool
    """Whether it is due more than once."""
    counts: Literal["gradient steps", "steps"]
    """What N is of."""

    def __new__(cls, text: object) -> Self:
        words = text.strip().lower() if isinstance(text, str) else ""
        words = re.sub(r"(?<=\d)_(?=\d)", "", words)
        found = WRITTEN.fullmatch(" ".join(re.sub(r"(?<=\w)[-_](?=\w)", " ", words).split()))
        number = whole_number(found["every"] or found["at"] or "1") if found else None
        if number is None or not 1 <= number < 10**12:
            cls.refuse(text)
        gradient = found["of"] or found["one"] or ""
        if found["event"]:
            written = f"at {found['event']}s"
        elif found["at"]:
            written = f"at {gradient}step {number}"
        else:
            written = f"every {gradient}step" if number == 1 else f"every {number} {gradient}steps"
        self = super().__new__(cls, written)
        self.moment, self.number, self.repeats = found["event"] or "gradient step", number, not found["at"]
        self.counts = "gradient steps" if gradient else "steps"
        return self

    def due(self, clock: Clock, before: int | None) -> bool:
        """Whether the gradient step that was just made is the time. `before`: steps when the one before it was made;
        None where there was none. False where something other than a gradient step is waited for."""
        if self.moment != "gradient step":
            return False
        if self.counts == "gradient steps":
            now, last = clock.gradient_steps, clock.gradient_steps - 1
        else:
            now, last = clock.steps, before
        if not self.repeats:
            return (last or 0) < self.number <= now
        return now // self.number > (now - 1 if last is None else last) // self.number
