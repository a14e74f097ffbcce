"""A run told to other tools, beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, by their libraries.

Only the first process tells. A tool that fails is left out with one warning: it never ends a run. What a
resumed run repeats is told once: TensorBoard purges it, the others get no step again.
"""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from sslkit.core.config.build import flat
from sslkit.core.console import Console, without_strays
from sslkit.core.errors import UserError, first_line
from sslkit.training.loop.signals import Interrupted
from sslkit.training.run.folder import RunFolder

LIBRARIES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""Name of a logger, and of the extra that brings what it imports."""
PROJECT = "sslkit"
NO_REPORTS = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""What these libraries send to their makers on their own is off, unless the user set these variables."""


class Logger(Protocol):
    """One tool. `where`: where its figures are, for people. `identity`: what finds its run again, or ""."""

    where: str
    identity: str

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def pictures(self, files: Mapping[int, Path]) -> None:
        """Files by step."""

    def close(self, code: int) -> None:
        """0: completed; 128 and more: stopped by a signal; else failed."""


class TensorBoard:
    """Event files in RUN/tensorboard."""

    identity = ""

    def __init__(self, run: RunFolder, config: Any, start: int, identity: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.where = str(run.path / "tensorboard")
        make: Any = SummaryWriter  # partly without types, in some versions
        self._writer = make(self.where, purge_step=start + 1)
        settings = "\n".join(f"    {key} = {value}" for key, value in flat(config).items())
        self._writer.add_text("settings", without_strays(settings), start)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def pictures(self, files: Mapping[int, Path]) -> None:
        for step, file in files.items():
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image("pictures", pixels, step, dataformats="HWC")

    def close(self, code: int) -> None:
        self._writer.close()


class WandB:
    """A run of the project "sslkit" or WANDB_PROJECT; offline, in RUN/wandb, unless the user is logged in."""

    def __init__(self, run: RunFolder, config: Any, start: int, identity: str) -> None:
        import wandb

        self.identity = identity or uuid.uuid4().hex
        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_machine_info=True
        )
        own = has_key() or os.environ.get("WANDB_MODE") == "disabled"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.path.name,
            id=self.identity,
            resume="allow" if own else None,
            mode=None if own else "offline",  # without a key it would ask for one
            dir=str(run.path),
            config=flat(config),
            settings=quiet,
        )
        self._image, self._last = wandb.Image, start
        offline = f"{run.path / 'wandb'}, offline: nothing is sent"
        self.where = offline if self._run.offline else self._run.url or ""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)
        self._last = step

    def pictures(self, files: Mapping[int, Path]) -> None:
        shown = [self._image(str(file), caption=f"step {step}") for step, file in files.items()]
        self._run.log({"pictures": shown}, step=self._last)

    def close(self, code: int) -> None:
        self._run.finish(exit_code=code)


class MLflow:
    """A run of the experiment "sslkit" in the user's own store, or in mlflow.db beside the run's folder."""

    def __init__(self, run: RunFolder, config: Any, start: int, identity: str) -> None:
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new store tells of its tables
        own = os.environ.get("MLFLOW_TRACKING_URI")
        beside = run.path.absolute().parent
        self.where = own or f"sqlite:///{beside / 'mlflow.db'}"
        self._client = MlflowClient(self.where)
        self.identity = identity or self._create(run, config, None if own else (beside / "mlflow").as_uri())
        self._client.update_run(self.identity, status="RUNNING")

    def _create(self, run: RunFolder, config: Any, files: str | None) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        number = known.experiment_id if known else self._client.create_experiment(name, files)
        made: str = self._client.create_run(number, run_name=run.path.name).info.run_id
        settings = [Param(key, str(value)[:500]) for key, value in flat(config).items()]
        for first in range(0, len(settings), 100):  # as many as it takes at once
            self._client.log_batch(made, params=settings[first : first + 100])
        return made

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.identity, [Metric(key, v, now, step) for key, v in figures.items()])

    def pictures(self, files: Mapping[int, Path]) -> None:
        for file in files.values():
            self._client.log_artifact(self.identity, str(file), "pictures")

    def close(self, code: int) -> None:
        self._client.set_terminated(
            self.identity, "FINISHED" if code == 0 else "KILLED" if code > 128 else "FAILED"
        )


MAKERS: dict[str, Callable[[RunFolder, Any, int, str], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def require(names: Sequence[str]) -> None:
    """Refuse a logger whose library is not installed. Raises UserError."""
    for name in names:
        if not all(map(_installed, LIBRARIES[name])):
            raise UserError(f"run.loggers {name}: its library is missing", f"pip install 'sslkit[{name}]'")


def has_key() -> bool:
    """Whether the user has logged in to Weights & Biases: a key in the environment or in their netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return host in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False


class Loggers:
    """The tools that one run is told to."""

    def __init__(self, run: RunFolder, config: Any, console: Console) -> None:
        self.run, self.config, self.console = run, config, console
        self._open: dict[str, Logger] = {}
        self._told = 0  # the last step that has been told, by this process or one before it

    @contextmanager
    def opened(self, start: int) -> Iterator[None]:
        """Told of what happens inside, from the step after `start` on; how it ends is told too."""
        if self.run.writes:
            self._begin(start)
        try:
            yield
        except BaseException as problem:
            self._end(int(problem.code or 0) if isinstance(problem, Interrupted) else 1)
            raise
        for name, logger in list(self._open.items()):
            self._try(name, logger.pictures, pictures_of(self.run.path))
        self._end(0)

    def log(self, line: Mapping[str, float | None]) -> None:
        """One line of metrics.jsonl; a figure that is null is left out."""
        if not self._open:
            return
        step = int(line["step"] or 0)
        figures = {name: value for name, value in line.items() if value is not None and name != "step"}
        for name, logger in list(self._open.items()):
            if step > self._told or not logger.identity:
                self._try(name, logger.log, step, figures)
        self._told = max(step, self._told)
        self._remember()

    def _begin(self, start: int) -> None:
        known = self.run.facts.get("loggers", {}) if self.config.run.loggers else {}
        self._told = known.get("step", 0)
        for name, value in NO_REPORTS.items():
            os.environ.setdefault(name, value)
        for name in self.config.run.loggers:
            logger = self._try(name, MAKERS[name], self.run, self.config, start, known.get(name, ""))
            if logger is not None:
                self._open[name] = logger
                self.console.say(f"  {name}: {logger.where}")

    def _end(self, code: int) -> None:
        for name, logger in list(self._open.items()):
            self._try(name, logger.close, code)

    def _remember(self) -> None:
        found = {name: logger.identity for name, logger in self._open.items() if logger.identity}
        if found:
            with suppress(OSError):  # a full disk is told of by those who write what matters
                self.run.update(loggers={**found, "step": self._told})

    def _try(self, name: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """What `call` returns; a failure is told once, and the tool left out from then on."""
        try:
            return call(*given, **named)
        except Exception as problem:
            self._open.pop(name, None)
            self.console.warn(f"{name} is left out: {first_line(problem)}; training goes on")
            return None


def pictures_of(run: Path) -> dict[int, Path]:
    """The reconstructions a run has written, by step."""
    found = {file.stem.removeprefix("step-"): file for file in sorted(run.glob("pictures/step-*.png"))}
    return {int(step): file for step, file in found.items() if step.isdecimal()}


def _installed(module: str) -> bool:
    """Whether there is such a package; a folder that only has its name, such as ./wandb, is none."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None
