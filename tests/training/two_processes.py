"""Run the same function in two processes (gloo, CPU), as a launcher would start them."""

import faulthandler
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from accelerate.state import PartialState

Outcome = tuple[Any, str | None]


def _process(
    rank: int, port: int, result: Connection, function: Callable[[], Any], environment: dict[str, str]
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **environment)
    os.fsync = lambda descriptor: None  # only a power cut would lose what was written
    faulthandler.enable(sys.__stderr__)  # where a signal ends it, nothing else says where
    PartialState._reset_state()
    try:
        outcome: Outcome = (function(), None)
    except BaseException:
        outcome = (None, traceback.format_exc())
    result.send(outcome)


def on_two(function: Callable[[], Any], *, timeout: float = 400, **environment: str) -> list[Any]:
    """What ``function`` gave in process 0 and in process 1; AssertionError with how each ended if one failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("forkserver")  # the parent has threads, which a fork of it would lack
    context.set_forkserver_preload(["mmalign.training.run"])  # imported once, not by every process
    pipes = [context.Pipe(duplex=False) for _ in (0, 1)]
    processes = [
        context.Process(target=_process, args=(rank, port, sends, function, environment))
        for rank, (_, sends) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, sends in pipes:
        sends.close()
    ends: dict[int, Outcome] = {}
    try:
        while len(ends) < 2:
            left = [rank for rank in (0, 1) if rank not in ends]
            # Whoever outlives the other waits for it in vain.
            patience = 30 if any(failure for _, failure in ends.values()) else timeout
            ready = wait([pipes[rank][0] for rank in left], patience)
            if not ready:
                break
            ends |= {rank: _outcome(pipes[rank][0], processes[rank]) for rank in left if pipes[rank][0] in ready}
        if not any(failure for _, failure in ends.values()):
            for process in processes:
                process.join(timeout=timeout)
    finally:
        for process in processes:
            process.kill()
    failed = {rank: ends.get(rank, (None, "gave no result in time"))[1] for rank in (0, 1)}
    said = [f"process {rank}: {failure}" for rank, failure in failed.items() if failure is not None]
    assert not said, "\n".join(said)
    return [ends[0][0], ends[1][0]]


def _outcome(result: Connection, process: BaseProcess) -> Outcome:
    try:
        return result.recv()
    except EOFError:
        process.join(timeout=60)
        return None, f"ended without a result, exit code {process.exitcode} (negative: a signal)"
