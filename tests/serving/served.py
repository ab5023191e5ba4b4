"""A server process to be killed: answers slowly, and says on stderr where it listens."""

import sys

from made_up_backend import Doubling

from ideomotor.serving.server import ServerConfig, serve

if __name__ == "__main__":
    serve(Doubling(seconds=float(sys.argv[1])), ServerConfig(port=int(sys.argv[2])))
