"""One training run from settings to a finished directory."""

from pathlib import Path

from gymnasium.vector import VectorEnv
from rich.console import Console

from agents.guard import NonFiniteError
from agents.ppo import PPO
from agents.value_agent import ValueAgent
from experiments.config import TrainConfig, to_dict
from experiments.logger import Logger
from experiments.loop import TaskChange, TaskDrift, Update, training
from experiments.probing import LAYOUT, Probing
from experiments.progress import ProgressLine
from experiments.run_directory import RunDirectory
from experiments.task_report import TaskReport, in_words, table


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
    logger.writer.add_custom_scalars(LAYOUT)
    probing = Probing(config, agent, directory, console)
    report = TaskReport(config.run.level_share, directory.path / "tasks.jsonl")
    code, step, saved = 0, 0, 0
    try:
        with ProgressLine(config.run.steps, logger, console) as progress:
            for event in training(agent, world, config.run.steps):
                if isinstance(event, Update):
                    logger.update(event)
                    logger.findings(event.step, probing.after_update())
                    continue
                if isinstance(event, TaskChange):
                    logger.findings(event.step, probing.at_boundary(event.step))
                    _note_task(event, report, logger, console)
                    continue
                if isinstance(event, TaskDrift):
                    logger.task_drift(event)
                    continue
                step = event.step
                logger.findings(step, probing.tick(step))
                logger.tick(event)
                report.tick(event)
                progress.tick(step)
                if step - saved >= config.checkpoint_every and step < config.run.steps:
                    directory.save(agent.state_dict(), step)
                    saved = step
        logger.findings(step, probing.last(step))
        logger.flush(step)
    except NonFiniteError as error:
        code = 1
        console.print(f"[bold red]stopped at step {step:,}:[/] {error}", highlight=False)
    except KeyboardInterrupt:
        code = 130
        console.print(f"[bold]interrupted at step {step:,}[/]", highlight=False)
    finally:
        if (summary := report.finish(step)) is not None:
            logger.task_summary(summary)
        logger.close()
        world.close()
    directory.save(agent.state_dict(), step, final=code == 0)
    if report.summaries:
        console.print("\n".join(table(report.summaries)), highlight=False, soft_wrap=True)
    return directory.path, code


def _note_task(event: TaskChange, report: TaskReport, logger: Logger, console: Console) -> None:
    if (summary := report.change(event)) is not None:
        logger.task_summary(summary)
    logger.task_change(event)
    words = f"step {event.step:,}: task {event.task}, {in_words(event.parameters)}"
    console.print(words, highlight=False, soft_wrap=True)


def _size(network: object) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


def _start_wandb(config: TrainConfig, path: Path) -> None:
    import wandb

    wandb.init(
        project=config.run.wandb_project, name=path.name, config=to_dict(config), dir=str(path), sync_tensorboard=True
    )
