"""Refits of a copy: can this network still learn something new?

Everything happens on deep copies and under a forked random state: the network, its gradients, its optimizer and the
global generators stay as they were. (Hooks and flags are copied with the network, so a hook that stores what it sees
will see the refits too: take it off first.) These probes train for thousands of steps and are meant for checkpoints.

Common arguments
- `network`: maps inputs [batch, ...] to outputs; `output`, where given, maps what it returns to a tensor [batch] or
  [batch, ...] (C51: the expected values; actor and critic: one of them). Its mode, training or not, is kept.
- `optimizer_factory(parameters)`: a new optimizer with the settings of the run.
- `fresh_network(generator)`: a newly initialised network of the same kind. It may ignore `generator`: what it draws
  globally is reproducible too, and leaves no trace.
- `generator`: a CPU generator of everything random; seed 0 where none is given.
- `progress(done, total)`: called after each gradient step.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

OutputFunction = Callable[..., Tensor]
OptimizerFactory = Callable[..., torch.optim.Optimizer]
NetworkFactory = Callable[[torch.Generator], nn.Module]
Progress = Callable[[int, int], None]

EVALUATION_BATCH = 1024


@contextlib.contextmanager
def forked_random_state(device: torch.device, seed: int | None) -> Iterator[None]:
    """torch's global generators, the CPU's and that of `device`, start from `seed` inside, if any, and are put back on
    leaving."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        if seed is not None:
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
            if on_gpu:
                torch.cuda.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), device)
        yield


def _drawn_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def _require_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if number <= 0:
            raise ValueError(f"{name} = {number}: must be above 0")


def _outputs(network: nn.Module, inputs: Tensor, output: OutputFunction | None) -> Tensor:
    """Outputs as [batch, m]."""
    returned = network(inputs)
    values = returned if output is None else output(returned)
    if not isinstance(values, Tensor) or values.dim() == 0 or len(values) != len(inputs):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"output gave {got} for {len(inputs)} inputs: must be a tensor [batch] or [batch, ...]")
    return values.reshape(len(inputs), -1)


@torch.no_grad()
def _all_outputs(network: nn.Module, inputs: Tensor, output: OutputFunction | None) -> Tensor:
    return torch.cat([_outputs(network, part, output) for part in inputs.split(EVALUATION_BATCH)]).float()


def _refit(
    optimizer: torch.optim.Optimizer, loss_of_rows: Callable[[Tensor], Tensor], minibatches: Tensor, tick: Callable
) -> None:
    """A gradient step on each of `minibatches`, int64 [steps, batch]."""
    with torch.enable_grad():
        for rows in minibatches:
            optimizer.zero_grad(set_to_none=True)
            loss_of_rows(rows).backward()
            optimizer.step()
            tick()


def _minibatches(rows: Tensor, steps: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Rows drawn with replacement, [steps, min(batch_size, all)]."""
    shape = (steps, min(batch_size, len(rows)))
    return rows[torch.randint(len(rows), shape, generator=generator).to(rows.device)]


def _ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def trainability(
    network: nn.Module,
    inputs: Tensor,
    optimizer_factory: OptimizerFactory,
    fresh_network: NetworkFactory,
    *,
    targets: int = 10,
    steps: int = 2000,
    batch_size: int = 128,
    scale: float = 1e5,
    output: OutputFunction | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """How well copies of `network` fit new targets, beside freshly initialised networks (Lyle23).

    Each of `targets` regressions has g(x) = a + sin(scale * f(x; fresh initialisation)) on `inputs` [n, ...], with a
    the mean prediction of the network that is fitted, output by output, so that finding a mean is no part of the task.
    A copy and a fresh network take the same `steps` steps of squared error on the same minibatches; errors are mean
    squared errors over all inputs and outputs after them. (A constant a would score 0.5.)

    Returns float32 [targets] each: "error" of the copies, "fresh_error" of the fresh networks, "excess", their
    difference: about 0 while plasticity lasts. It measures memorisation: see `held_out_accuracy`. Because of `scale`
    the targets of one seed differ from device to device.
    Cost: 2 * targets * steps gradient steps. ValueError for numbers not above 0 or outputs of a wrong shape.
    """
    _require_positive(targets=targets, steps=steps, batch_size=batch_size, scale=scale)
    generator = generator or torch.Generator().manual_seed(0)
    device, tick = inputs.device, _ticker(progress, 2 * targets * steps)

    def fresh() -> nn.Module:
        return fresh_network(generator).to(device).train(network.training)

    def error_after_refit(student: nn.Module, noise: Tensor, minibatches: Tensor) -> Tensor:
        goal = _all_outputs(student, inputs, output).mean(0) + noise

        def loss(rows: Tensor) -> Tensor:
            return (_outputs(student, inputs[rows], output).float() - goal[rows]).square().mean()

        _refit(optimizer_factory(student.parameters()), loss, minibatches, tick)
        return (_all_outputs(student, inputs, output) - goal).square().mean()

    errors = []
    with forked_random_state(device, _drawn_seed(generator)):
        for _ in range(targets):
            noise = torch.sin(scale * _all_outputs(fresh(), inputs, output))
            drawn = noise, _minibatches(torch.arange(len(inputs), device=device), steps, batch_size, generator)
            errors += [error_after_refit(copy.deepcopy(network), *drawn), error_after_refit(fresh(), *drawn)]
    error, fresh_error = torch.stack(errors[::2]), torch.stack(errors[1::2])
    return {"error": error, "fresh_error": fresh_error, "excess": error - fresh_error}


def random_function_labels(network: nn.Module, inputs: Tensor, output: OutputFunction | None = None) -> Tensor:
    """Labels int64 [n] that a random network gives to `inputs` [n, ...]: its largest output, each output first
    standardised over the inputs so that no class takes all. Unlike labels drawn at random they can be generalised,
    where the inputs themselves (Atari frames) have none. ValueError where the network has fewer than two outputs."""
    values = _all_outputs(network, inputs, output)
    if values.shape[1] < 2:
        raise ValueError(f"network with {values.shape[1]} output: must have at least 2")
    return ((values - values.mean(0)) / (values.std(0, correction=0) + 1e-8)).argmax(1)


def held_out_accuracy(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    optimizer_factory: OptimizerFactory,
    *,
    optimizer_state: dict | None = None,
    fresh_network: NetworkFactory | None = None,
    held_out: float = 0.2,
    steps: int = 2000,
    batch_size: int = 128,
    output: OutputFunction | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Accuracy of a copy of `network` refitted to classify `inputs` [n, ...], on a share `held_out` it never saw.

    `labels` int64 [n] must be below the number of outputs, which serve as logits: given ones, or those of
    `random_function_labels`. (With labels drawn at random "train" measures memorisation and "held_out" is chance.)
    Every refit has the same split, `steps` and minibatches, and minimises cross-entropy:
    - "fresh_optimizer": the copy with a new optimizer;
    - "carried_optimizer": the copy with `optimizer_state`, the run's `optimizer.state_dict()`, where given;
    - "fresh_network": a newly initialised network with a new optimizer, where `fresh_network` is given.

    Returns "train/NAME" and "held_out/NAME" of each, and "held_out/chance", the accuracy of always giving the commonest
    training label; 0-d float32. Cost: `steps` gradient steps a refit. ValueError for numbers outside their range,
    labels that do not fit the inputs, or a split that leaves one side empty.
    """
    _require_positive(steps=steps, batch_size=batch_size)
    generator = generator or torch.Generator().manual_seed(0)
    rows = _split(inputs, labels, held_out, generator)
    minibatches = _minibatches(rows["train"], steps, batch_size, generator)
    tick = _ticker(progress, (1 + (optimizer_state is not None) + (fresh_network is not None)) * steps)
    results: dict[str, Tensor] = {}

    def refit(name: str, student: nn.Module, state: dict | None = None) -> None:
        optimizer = optimizer_factory(student.parameters())
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))  # which would otherwise share the moments with us
        for part, accuracy in _classified(student, optimizer, inputs, labels, rows, minibatches, output, tick).items():
            results[f"{part}/{name}"] = accuracy

    with forked_random_state(inputs.device, _drawn_seed(generator)):
        refit("fresh_optimizer", copy.deepcopy(network))
        if optimizer_state is not None:
            refit("carried_optimizer", copy.deepcopy(network), optimizer_state)
        if fresh_network is not None:
            refit("fresh_network", fresh_network(generator).to(inputs.device).train(network.training))
    commonest = labels[rows["train"]].mode().values
    return results | {"held_out/chance": (labels[rows["held_out"]] == commonest).float().mean()}


def _split(inputs: Tensor, labels: Tensor, held_out: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows to "train" on and those "held_out". ValueError: see `held_out_accuracy`."""
    if labels.shape != inputs.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels {labels.dtype} of shape {tuple(labels.shape)}: must be int64 [{len(inputs)}]")
    apart = round(held_out * len(inputs))
    if not 0 < apart < len(inputs):
        raise ValueError(f"held_out = {held_out} of {len(inputs)} inputs: must leave at least one on either side")
    order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    return {"train": order[apart:], "held_out": order[:apart]}


def _classified(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    rows: dict[str, Tensor],
    minibatches: Tensor,
    output: OutputFunction | None,
    tick: Callable[[], None],
) -> dict[str, Tensor]:
    """The accuracy of `student` on each part of the `rows`, after a refit to the `labels` of these `minibatches`."""

    def loss(here: Tensor) -> Tensor:
        return nn.functional.cross_entropy(_outputs(student, inputs[here], output).float(), labels[here])

    _refit(optimizer, loss, minibatches, tick)
    guesses = {part: _all_outputs(student, inputs[here], output).argmax(1) for part, here in rows.items()}
    return {part: (guesses[part] == labels[here]).float().mean() for part, here in rows.items()}
