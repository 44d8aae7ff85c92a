"""``mimbench`` in a process of its own, with its trainings noted and an accident where the test wants one.

STARTS: a file that gets a line for each training that starts. ACCIDENT: a signal that the process sends
itself right after a checkpoint was written ("SIGKILL") or in the middle of a step ("SIGINT", "SIGTERM"),
or "verdict": an evaluation fails in the process that leads it.
FILE_LIMIT: the largest file in bytes that the system lets it write, as on a full disk.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Any

# What every run needs, loaded once by the server that the processes are forked from.
from mimbench import checkpoint, evaluate, registry, train_step, work  # noqa: F401
from mimbench.cli import main
from mimbench.protocol import EvaluationFailed

pretrain, save, step = work.pretrain, checkpoint.save_checkpoint, train_step.TrainStep.__call__
judge = evaluate._checked


def _noted(method: Any, *arguments: Any, **options: Any) -> Any:
    with open(os.environ["STARTS"], "a") as file:
        file.write(f"{method.card.key}\n")
    return pretrain(method, *arguments, **options, checkpoint_every=0.0)


def _saved(*arguments: Any, **options: Any) -> None:
    save(*arguments, **options)
    if os.environ.get("ACCIDENT") == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)


def _stepped(self: Any, *arguments: Any, **options: Any) -> Any:
    if (accident := os.environ.get("ACCIDENT")) in ("SIGINT", "SIGTERM"):
        os.kill(os.getpid(), getattr(signal, accident))
    return step(self, *arguments, **options)


def _judged(*arguments: Any) -> Any:
    result = judge(*arguments)
    if os.environ.get("ACCIDENT") == "verdict":
        raise EvaluationFailed("the verdict got lost")
    return result


def mimbench(folder: str, arguments: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """The command line in ``folder``, writing to the files ``out`` and ``err``."""
    os.chdir(folder)
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["mimbench", *arguments]
    work.pretrain, checkpoint.save_checkpoint = _noted, _saved
    train_step.TrainStep.__call__ = _stepped  # type: ignore[method-assign]
    evaluate._checked = _judged
    if limit := environment.get("FILE_LIMIT"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    main()
