"""What a robot's computer needs to be driven by a served policy: numpy, websockets, Python 3.9 or newer, no torch.

The same folder is the package ``ideomotor_client`` (``pip install ideomotor-client``) and ``ideomotor.serving.client``.
"""

from .asynchronous import AsyncClient
from .blending import Turns
from .blocking import Client
from .errors import ConnectionLost, NoServer, NotLetIn, Refused, ReplyTimeout, ServerChanged, ServingError
from .execution import ChunkPlan, ChunkRunner, Contract, Step, contract_of
from .messages import Extras, Reply, WorldReply
from .pacing import Pacer, RateReport
from .runner import BackgroundAsker, run_chunks
from .safety import Checked, Limits, SafetyFilter, SafetyStop

__all__ = [
    "AsyncClient",
    "BackgroundAsker",
    "Checked",
    "ChunkPlan",
    "ChunkRunner",
    "Client",
    "ConnectionLost",
    "Contract",
    "Extras",
    "Limits",
    "NoServer",
    "NotLetIn",
    "Pacer",
    "RateReport",
    "Refused",
    "Reply",
    "ReplyTimeout",
    "SafetyFilter",
    "SafetyStop",
    "ServerChanged",
    "ServingError",
    "Step",
    "Turns",
    "WorldReply",
    "contract_of",
    "run_chunks",
]
