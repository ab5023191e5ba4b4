"""What can go wrong between a client and a server, one class for each thing that a caller may want to do about it."""

from __future__ import annotations


class ServingError(RuntimeError):
    """Anything below."""


class NoServer(ServingError, TimeoutError):
    """No server was found in time."""


class NotLetIn(NoServer):
    """What listens does not let this client in, and will not: the API key is wrong, or it is no policy server."""


class ConnectionLost(ServingError, ConnectionError):
    """The server went away before it answered; what it knew of this client's sessions is gone.

    Nothing has to be done but to ask again: the next request connects anew, and its reply says ``session_is_new``.
    """


class ReplyTimeout(ServingError, TimeoutError):
    """No reply came in time. The session lives on, and the reply is dropped if it still comes."""


class ServerChanged(ServingError):
    """After a lost connection another policy answers at the same address: actions could mean something else."""


class Refused(ServingError):
    """The server answered with an error.

    Attributes:
        code: bad_message, bad_observation, too_large, too_many, rate_limited, expired, internal or shutting_down; ""
            where a foreign server did not say.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.code = code

    @property
    def passing(self) -> bool:
        """Whether the same request may well be answered a moment later."""
        return self.code in ("rate_limited", "expired", "shutting_down")


def passes(error: Exception) -> bool:
    """Returns whether another request may well be answered: the server is away, or busy."""
    if isinstance(error, Refused):
        return error.passing
    return isinstance(error, OSError) and not isinstance(error, NotLetIn)
