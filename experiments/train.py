"""One training run from settings to a finished directory."""

from pathlib import Path

from gymnasium.vector import VectorEnv
from rich.console import Console

from agents.guard import NonFiniteError
from agents.ppo import PPO
from agents.value_agent import ValueAgent
from experiments.config import TrainConfig, to_dict
from experiments.logger import Logger
from experiments.loop import Tick, training
from experiments.progress import ProgressLine
from experiments.run_directory import RunDirectory


def train(
    config: TrainConfig, world: VectorEnv, agent: ValueAgent | PPO, console: Console | None = None
) -> tuple[Path, int]:
    """Train the `agent` that `setup.build` made of `config` in its `world` and return (run directory, exit code).

    Exit code 0: finished; 1: stopped because something was not finite; 130: interrupted. What was logged and a last
    checkpoint of the weights are kept in every case. The world is closed at the end.
    """
    console = console or Console()
    directory = RunDirectory(config)
    directory.write_manifest(agent.device)
    if config.run.wandb:
        _start_wandb(config, directory.path)
    logger = Logger(directory.path, config.log_every, agent.optimization.guard, agent.scalars)
    console.print(f"[bold]{directory.path}[/]  on {agent.device}, {_size(agent.network)} parameters", highlight=False)
    code, step, saved = 0, 0, 0
    try:
        with ProgressLine(config.run.steps, logger, console) as progress:
            for event in training(agent, world, config.run.steps):
                if not isinstance(event, Tick):
                    logger.update(event)
                    continue
                step = event.step
                logger.tick(event)
                progress.tick(step)
                if step - saved >= config.checkpoint_every and step < config.run.steps:
                    directory.save(agent.state_dict(), step)
                    saved = step
        logger.flush(step)
    except NonFiniteError as error:
        code = 1
        console.print(f"[bold red]stopped at step {step:,}:[/] {error}", highlight=False)
    except KeyboardInterrupt:
        code = 130
        console.print(f"[bold]interrupted at step {step:,}[/]", highlight=False)
    finally:
        logger.close()
        world.close()
    directory.save(agent.state_dict(), step, final=code == 0)
    return directory.path, code


def _size(network: object) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


def _start_wandb(config: TrainConfig, path: Path) -> None:
    import wandb

    wandb.init(
        project=config.run.wandb_project, name=path.name, config=to_dict(config), dir=str(path), sync_tensorboard=True
    )
