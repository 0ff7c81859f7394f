"""Processes of a run that start in a moment: forked from one that has imported everything.

They are real ones: they have signals, file sizes and an end of their own.
"""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ddpm_sa.cli import run_program
from training.train import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.workers"])


class Workers:
    """The processes of one run, as torchrun would start them, without a torchrun.

    Args:
        argv: The command line.
        processes: How many.
        output: Where what they print goes.
        before: Called first in each, with its rank.
        program: What gets the command line; the training, if not given.
    """

    def __init__(
        self,
        argv: list[str],
        processes: int,
        output: Path,
        before: Callable[[int], None] | None = None,
        program: Callable[[list[str]], None] = main,
    ):
        port = free_port() if processes > 1 else 0
        self.output = output
        output.write_text("")
        self.processes = [
            CONTEXT.Process(
                target=_work, args=(argv, rank, processes, port, output, before, program)
            )
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Their exit codes; None is that of one that still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def printed(self) -> str:
        return self.output.read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.0005)


def _work(
    argv: list[str],
    rank: int,
    processes: int,
    port: int,
    output: Path,
    before: Callable[[int], None] | None,
    program: Callable[[list[str]], None],
) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    # A shell that runs the tests in the background, or nohup, has them ignore signals, and a run
    # goes by that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if before is not None:
        before(rank)
    run_program(lambda: program(argv))
