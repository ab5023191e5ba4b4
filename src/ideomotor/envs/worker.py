"""A process that answers messages through a pipe; when it fails or dies, the caller hears of it instead of waiting."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol


class Desk(Protocol):
    """What works inside the process."""

    def answer(self, message: Any) -> Any:
        """Returns the reply to one message."""

    def close(self) -> None:
        """Called once, before the process ends."""


class Worker:
    """The caller's end of the process; it ends with ``end`` and ``join``, and with the caller's own process.

    Args:
        make: called in the process, returns what answers there; it must be picklable, so no lambda.
        name: for errors.
        timeout: seconds that ``receive`` waits before it gives the process up.
    """

    def __init__(self, make: Callable[[], Desk], *, name: str, timeout: float = 300.0) -> None:
        # Not fork: neither OpenGL contexts nor torch's threads survive it.
        context = multiprocessing.get_context("spawn")
        self._name, self._timeout = name, timeout
        self.connection, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, make), daemon=True)
        self._process.start()
        far.close()  # so that the pipe reports the end of the process

    @property
    def pid(self) -> int | None:
        """The process' number."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Asks; one answer must be received before the next question."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionError) as error:
            raise self._died() from error

    def receive(self) -> Any:
        """Returns the answer.

        Raises:
            RuntimeError: the process failed at it (the message ends with its traceback), or died.
            TimeoutError: no answer came in time.
        """
        if not self.connection.poll(self._timeout):
            raise TimeoutError(f"{self._name} has not answered for {self._timeout:g} s: is the machine overloaded?")
        try:
            well, answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._died() from error
        if not well:
            raise RuntimeError(answer)
        return answer

    def end(self) -> None:
        """Asks the process to end, without waiting for it."""
        with contextlib.suppress(OSError):  # it is dead already
            self.connection.send(None)
        self.connection.close()

    def join(self) -> None:
        """Waits for the end of the process, 5 seconds by asking and then by force."""
        for stop in (None, self._process.terminate, self._process.kill):
            if stop is not None:
                stop()
            self._process.join(timeout=5)
            if self._process.exitcode is not None:
                break
        self._process.close()

    def _died(self) -> RuntimeError:
        self._process.join(timeout=5)
        code = self._process.exitcode or 0
        hints = {
            -signal.SIGKILL: "; that is often memory running out: take fewer worlds or workers",
            1: "; its traceback is above (a script that starts workers needs `if __name__ == '__main__':`)",
        }
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return RuntimeError(f"{self._name} ended {how}{hints.get(code, '')}")


def _serve(pipe: Connection, make: Callable[[], Desk]) -> None:
    # Two processes already use both cores; more threads in each would only wait for one another. Mesa reads this when
    # the first OpenGL context is made.
    os.environ["LP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who then ends this process
    desk: Desk | None = None
    try:
        while (message := pipe.recv()) is not None:
            desk = desk or make()
            pipe.send((True, desk.answer(message)))
    except (EOFError, BrokenPipeError, ConnectionError):
        pass  # the caller is gone
    except Exception as error:
        there = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            pipe.send((False, f"{error}\n\nIn the worker:\n{there}"))
        raise SystemExit(1) from error
    finally:
        if desk is not None:
            desk.close()
