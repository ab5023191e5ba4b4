"""Processes that answer messages through pipes; when one fails or dies, the caller hears of it instead of waiting."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
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


class Workers:
    """Desks that are asked together, each in a process of its own, or all in this one.

    Args:
        makes: one a desk, as ``Worker`` wants them.
        names: one a desk, for errors.
        apart: in processes.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self, makes: Sequence[Callable[[], Desk]], names: Sequence[str], *, apart: bool, timeout: float
    ) -> None:
        self.links: list[_Here | Worker] = []
        try:
            for make, name in zip(makes, names, strict=True):
                self.links.append(Worker(make, name=name, timeout=timeout) if apart else _Here(make()))
        except BaseException:
            self.close()
            raise

    def ask(self, messages: Sequence[Any]) -> list[Any]:
        """Returns the answer of every desk to its message; after an error all are closed."""
        if not self.links:
            raise RuntimeError("these worlds were closed: make new ones")
        try:
            for link, message in zip(self.links, messages, strict=True):
                link.send(message)
            return [link.receive() for link in self.links]
        except BaseException:
            self.close()  # what the others would still answer can no longer be told apart
            raise

    def close(self) -> None:
        """Ends the processes, by force where one has not ended after 5 seconds; calling it again does nothing."""
        links, self.links = self.links, []
        for link in links:
            link.end()
        for link in links:
            link.join()


class _Here:
    """A desk in this process, asked in the same way as one in another."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._message: Any = None

    def send(self, message: Any) -> None:
        self._message = message

    def receive(self) -> Any:
        return self._desk.answer(self._message)

    def end(self) -> None:
        self._desk.close()

    def join(self) -> None:
        """Nothing runs on."""


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
