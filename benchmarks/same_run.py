"""Whether a change of structure keeps every number: the same short runs on two versions of the code, hashes compared.

Each run is `train.py` in a process of its own, one thread, so that nothing of the code's inside is relied on: what is
hashed is the directory that it leaves. A hash for each part: weights (of networks and target networks), Adam's moments
and steps, what else the agent remembers (interventions, generators), metrics. Values count, names do not: a renamed
tag or parameter is the same number. Speeds are left out.

    python -m benchmarks.same_run                      # a line a run
    python -m benchmarks.same_run --against REVISION   # that version first, then this one, run by run
    python -m benchmarks.same_run --against REVISION --moved dqn-cbp,dqn-dropout   # these may differ, and only these

The other version's own list of runs counts, and this one replays its config.json files, so that a flag may have got
another name. Exit code 1 where a run differs that is not named by --moved.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from experiments.store import listed, read

ROOT = Path(__file__).parents[1]
SPEEDS = ("charts/SPS",)
ELSEWHERE = {
    ("clock", "task"),
    ("interventions", "before"),
    ("interventions", "members", "reset", "multiples"),
    ("interventions", "members", "dropout", "generator"),
    ("interventions", "surgery", "generator"),
    ("interventions", "drawing"),
}
"""Counters and streams, with what is in them, that some versions keep in another place, or not at all."""
PARTS = ("weights", "adam", "others", "metrics")

CARTPOLE = "--env CartPole-v1 --steps 1500 --learning-starts 300 --batch-size 32"
CLASSIC = f"dqn {CARTPOLE}"
BREAKOUT = "--env ALE/Breakout-v5 --steps 500 --learning-starts 200 --buffer-size 2000 --batch-size 8"
LABELS = "--env ImageMDP-v0 --steps 1800 --task.period 600 --width 64 --learning-starts 200 --target-period 50"
POLICY = "ppo --env CartPole-v1 --steps 2048"
FRICTION = (
    "ppo --env FrictionAnt-v0 --preset dohare24_friction_ant_scaled_down --num-envs 2 --steps 2048 --task.period 800 "
    "--rollout-steps 128 --num-minibatches 4 --update-epochs 2 --max-episode-steps 150"
)
RECYCLING = f"{CLASSIC} --interventions redo --redo.when every-50-gradient-steps"
CHANGES = "--env CartPole-v1 --steps 1800 --learning-starts 200 --task.change actions --task.period 600"

RUNS = {
    "dqn-huber": f"{CLASSIC} --loss huber",
    "dqn-mse": f"{CLASSIC} --loss mse --no-double --max-grad-norm 1 --tau 0.01 --target-period 1",
    "dqn-two-hot": f"{CLASSIC} --loss two_hot --v-min 0 --v-max 100",
    "dqn-hl-gauss": f"{CLASSIC} --loss hl_gauss --v-min 0 --v-max 100",
    "c51": f"c51 {CARTPOLE}",
    "dqn-atari": f"dqn {BREAKOUT} --probes default --probe.every 100 --probe.samples 64",
    "c51-atari": f"c51 {BREAKOUT} --num-envs 2 --backend gymnasium --interventions layer_norm",
    "dqn-labels": f"dqn {LABELS} --probes default --probe.every 300 --replay.on-task-change clear",
    "c51-small-cnn": "c51 --env ImageMDP-v0 --steps 600 --torso small_cnn --width 64 --depth 2 --learning-starts 200",
    "dqn-modes": f"dqn {CHANGES} --epsilon.over task --interventions optimizer_reset reset"
    " --reset.when at-task-changes",
    "ppo-separate": POLICY,
    "ppo-shared": f"{POLICY} --shared-torso --clip-vloss --reward-transform scale",
    "ppo-hl-gauss": f"{POLICY} --value-loss hl_gauss --v-min 0 --v-max 60 --probes all --probe.every 512",
    "ppo-atari": "ppo --env ALE/Pong-v5 --steps 1024 --num-envs 4 --rollout-steps 64 --num-minibatches 2",
    "ppo-hopper": "ppo --env Hopper-v5 --steps 2048 --rollout-steps 512 --num-minibatches 8 --update-epochs 4",
    "ppo-friction": f"{FRICTION} --probes default --probe.every 512",
    "ppo-labels": "ppo --env ImageMDP-v0 --steps 2048 --width 64 --task.period 600",
    "dqn-redo": f"{RECYCLING} --redo.tau 0.5 --redo.samples 64",
    "dqn-redo-local": f"{RECYCLING} --redo.tau 0.5 --surgery.moments local",
    "dqn-cbp": f"{CLASSIC} --interventions cbp --cbp.replacement-rate 0.01 --cbp.maturity 50",
    "ppo-cbp": f"{FRICTION} --interventions cbp_l2 --cbp.replacement-rate 0.01 --cbp.maturity 20",
    "dqn-reset": f"{CLASSIC} --interventions reset --reset.last 2 --reset.when every-500-steps",
    "ppo-shrink": f"{FRICTION} --interventions shrink_perturb",
    "dqn-soft-shrink": f"{CLASSIC} --interventions shrink_perturb --shrink-perturb.form dohare",
    "dqn-injection": f"{CLASSIC} --interventions plasticity_injection --plasticity-injection.when at-step-700",
    "ppo-nap": f"{POLICY} --interventions nap weight_decay",
    "dqn-clip": f"{CLASSIC} --interventions weight_clip adam_betas --weight-clip.kappa 1.0",
    "dqn-penalties": f"{CLASSIC} --interventions l2_init parseval infer pfo",
    "dqn-popart": f"{CLASSIC} --interventions popart redo --redo.tau 0.3 --redo.when every-50-gradient-steps"
    " --no-double",
    "ppo-popart": f"{POLICY} --no-clip-vloss --interventions popart optimizer_reset",
    "dqn-crelu": f"{CLASSIC} --interventions crelu spectral_norm l2",
    "dqn-batch-norm": f"{CLASSIC} --interventions batch_norm activation weight_decay",
    "dqn-dropout": f"{CLASSIC} --interventions dropout",
    "dqn-many": f"{CLASSIC} --interventions ln_wd redo l2_init --redo.tau 0.3 --redo.when every-40-gradient-steps",
}


def multiset_hash(blobs: Iterable[bytes]) -> str:
    """A short hash of a multiset of byte strings."""
    whole = hashlib.sha256()
    for one in sorted(hashlib.sha256(blob).digest() for blob in blobs):
        whole.update(one)
    return whole.hexdigest()[:10]


def leaves(state: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """(path, bytes) of every tensor and number in nested dicts and lists."""
    import torch

    if isinstance(state, dict):
        for key, value in state.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from leaves(value, (*path, str(index)))
    elif isinstance(state, torch.Tensor):
        flat = state.detach().contiguous().flatten()
        yield path, str((state.dtype, tuple(state.shape))).encode() + flat.view(torch.uint8).numpy().tobytes()
    elif state is not None and not isinstance(state, str):
        yield path, repr(state).encode()


def part_of(path: tuple[str, ...]) -> str:
    """Which hash a leaf of the agent's state counts in."""
    if path[-1] in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"):
        return "adam"
    if any(key in ("network", "target_network") for key in path):
        return "weights"
    return "settings" if "param_groups" in path else "others"


def hashes(directory: Path) -> dict[str, str]:
    """The hash of each part of a finished run."""
    import torch

    final = directory / "checkpoints" / "final.pt"  # of versions before checkpoints were directories
    if final.exists():
        state = torch.load(final, map_location="cpu", weights_only=True)["agent"]
    else:
        state = read(listed(directory / "checkpoints")[-1]).load("agent")
    blobs: dict[str, list[bytes]] = {part: [] for part in PARTS}
    for path, blob in leaves(state):
        if path[0] == "rollout" or any(path[: len(place)] == place for place in ELSEWHERE):
            continue
        blobs.setdefault(part_of(path), []).append(blob)
    series: dict[str, list[tuple[int, float]]] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for tag, value in record.items():
            series.setdefault(tag, []).append((step, value))
    blobs["metrics"] = [repr(points).encode() for tag, points in series.items() if tag not in SPEEDS]
    return {part: multiset_hash(blobs[part]) for part in PARTS}


def run(tree: Path, arguments: list[str], runs: Path, name: str) -> tuple[dict[str, str], Path]:
    """`train.py arguments` of the code in `tree`: (hash of each part, its directory). RuntimeError: it failed."""
    command = [sys.executable, "train.py", *arguments, "--device", "cpu", "--threads", "1"]
    command += ["--runs-dir", str(runs), "--name", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {' '.join(command)}\n{(done.stdout + done.stderr)[-2000:]}")
    return hashes(runs / name), runs / name


def runs_of(tree: Path) -> dict[str, str]:
    """The list of runs of the version in `tree`; this one's where it has none."""
    if not (tree / "benchmarks" / "same_run.py").exists():
        return RUNS
    listed = subprocess.run(
        [sys.executable, "-m", "benchmarks.same_run", "--list"], cwd=tree, capture_output=True, text=True, check=True
    )
    return json.loads(listed.stdout)


def compare(revision: str, only: list[str], moved: set[str], scratch: Path) -> int:
    """Every run on `revision` and on this tree; a line each. The number of runs that differ and are not in `moved`."""
    other, wrong = scratch / "other", 0
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(other), revision], cwd=ROOT, check=True)
    try:
        for name, arguments in runs_of(other).items():
            if only and name not in only:
                continue
            before, directory = run(other, arguments.split(), scratch / "before", name)
            after, _ = run(ROOT, ["--config", str(directory / "config.json")], scratch / "after", name)
            differs = [part for part in PARTS if before[part] != after[part]]
            wrong += bool(differs) and name not in moved
            verdict = "same" if not differs else ("moved: " if name in moved else "DIFFERS: ") + ", ".join(differs)
            print(f"{name:18} " + " ".join(f"{after[part]}" for part in PARTS) + f"  {verdict}", flush=True)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)
    return wrong


def main() -> int:
    """Run, hash, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", help="a git revision")
    parser.add_argument("--moved", default="", help="names of runs that may differ, with commas between them")
    parser.add_argument("--only", nargs="+", default=[], help="names of runs")
    parser.add_argument("--list", action="store_true", help="print the list of runs as JSON")
    chosen = parser.parse_args()
    if chosen.list:
        print(json.dumps(RUNS))
        return 0
    print(f"{'run':18} " + " ".join(f"{part:10}" for part in PARTS), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if chosen.against:
            return 1 if compare(chosen.against, chosen.only, set(chosen.moved.split(",")), scratch) else 0
        for name, arguments in RUNS.items():
            if not chosen.only or name in chosen.only:
                found, _ = run(ROOT, arguments.split(), scratch, name)
                print(f"{name:18} " + " ".join(found[part] for part in PARTS), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
