"""Runs where nothing but openpi-client is installed: observations in as lines of JSON, actions of a server out."""

import base64
import json
import sys

import numpy as np
from openpi_client import action_chunk_broker, websocket_client_policy


def main(url: str) -> None:
    client, broker = None, None
    for line in sys.stdin:
        told = json.loads(line)
        if told.get("begin"):  # openpi's protocol knows no sessions: an episode is a connection
            client = websocket_client_policy.WebsocketClientPolicy(url, api_key=told.get("api_key"))
            horizon = client.get_server_metadata()["ideomotor"]["actions"]["execute"]
            broker = action_chunk_broker.ActionChunkBroker(client, action_horizon=horizon)
            answer = {"metadata": client.get_server_metadata()["ideomotor"], "numpy": np.__version__}
        else:
            observation = {"prompt": told["prompt"], "state": np.array(told["state"])}
            pixels = np.frombuffer(base64.b64decode(told["image"]), np.uint8).reshape(told["shape"])
            observation["images"] = {told.get("camera", "main"): pixels}
            try:
                answer = {"action": broker.infer(observation)["actions"].tolist()}
            except RuntimeError as error:
                answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
