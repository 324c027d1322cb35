"""From what a Gaussian policy draws to what a world with bounded, continuous actions takes."""

import numpy as np

from agents.config import ActionScaling

UNBOUNDED = 1e9
"""Bounds from here on are taken as none: some worlds write the greatest number of their type for "unbounded"."""
REACH = (0.25, 4.0)
"""Half-widths of bounds around 0 that a new policy, of mean 0 and standard deviation 1, fills well enough."""


def scaled_dimensions(low: np.ndarray, high: np.ndarray, scaling: ActionScaling) -> np.ndarray:
    """Which dimensions of an action in [`low`, `high`] are given to the world as an affine map of [-1, 1]; bool [D].

    on: all that are bounded. auto: of these, each that a new policy could not reach or fill, because 0 lies outside the
    bounds (|centre| > half-width) or the half-width lies outside `REACH`. off: none.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    bounded = (np.abs(low) < UNBOUNDED) & (np.abs(high) < UNBOUNDED)
    if scaling != "auto":
        return bounded & (scaling == "on")
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    centre, half = (low + high) / 2, (high - low) / 2
    return bounded & ((np.abs(centre) > half) | (half < REACH[0]) | (half > REACH[1]))


class ActionMap:
    """Maps actions [E, D] as a policy draws them to float32 [E, D] as the world takes them.

    Dimensions that are scaled (see `scaled_dimensions`) go from [-1, 1] to the bounds, as gymnasium's RescaleAction;
    the others stay. What lies outside the bounds is clipped where `clip`.

    Args:
        low, high: the world's bounds [D].
        scaling: on, off or auto.
        clip: whether the world sees nothing outside its bounds.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, scaling: ActionScaling, clip: bool) -> None:
        self.low, self.high, self.scaling, self.clip = low, high, scaling, clip
        self.scaled = scaled_dimensions(low, high, scaling)
        least, most = np.where(self.scaled, low, -1.0).astype(float), np.where(self.scaled, high, 1.0).astype(float)
        self._centre, self._half = (least + most) / 2, (most - least) / 2
        self._any = bool(self.scaled.any())

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        if self._any:
            # In float64, so that what is not scaled comes through to the bit.
            actions = (actions.astype(np.float64) * self._half + self._centre).astype(np.float32)
        return np.minimum(np.maximum(actions, self.low), self.high) if self.clip else actions

    def remark(self) -> str:
        """What a user should know of it, in a sentence; empty where nothing is scaled and all can be reached."""
        if self._any:
            return f"actions {self._bounds(self.scaled)} are scaled from [-1, 1] (--action-scaling {self.scaling})"
        far = scaled_dimensions(self.low, self.high, "auto")
        if not far.any():
            return ""
        return f"actions {self._bounds(far)} are not where a new policy draws, about [-1, 1]: see --action-scaling"

    def _bounds(self, which: np.ndarray) -> str:
        """``in [0, 5]``, or ``in [0, 5], [0, 9] (dimensions 1, 2)`` where not all dimensions are meant."""
        pairs = [f"[{low:g}, {high:g}]" for low, high in zip(self.low[which], self.high[which], strict=True)]
        distinct = list(dict.fromkeys(pairs))
        listed = ", ".join(distinct[:3]) + (", ..." if len(distinct) > 3 else "")
        places = [str(index) for index in np.flatnonzero(which)]
        where = ", ".join(places[:8]) + (", ..." if len(places) > 8 else "")
        return f"in {listed}" + ("" if which.all() else f" (dimension{'s' if len(places) > 1 else ''} {where})")
