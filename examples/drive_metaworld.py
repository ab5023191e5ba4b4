"""Meta-World in this process, the policy in another: pictures go through a socket, chunks of actions come back.

    ideomotor serve runs/quickstart/finetune &
    python examples/drive_metaworld.py [ws://127.0.0.1:8000 [TASK [EPISODES]]]

You see which goals were reached, and how long answers took. The simulator waits for them, as a robot would not: for
one, see robot_loop.py.
"""

import sys

import numpy as np

from ideomotor.envs.metaworld import MetaWorldConfig, MetaWorldEnv
from ideomotor.serving.client import Client, Extras, contract_of

FIRST_GOAL = 30  # goals 30 to 49 of each task are for trials; no policy of ours was trained on them


def episode(client: Client, world: MetaWorldEnv, camera: str, goal: int) -> tuple[bool, int, list[float]]:
    """Acts until the task is done or time is up; returns success, steps, and milliseconds of each answer."""
    execute, took, done = contract_of(client.metadata).execute, [], False
    seen, info = world.reset(options={"goal": goal})
    client.reset()  # the policy forgets the episode before
    while not done:
        (frame,) = seen["frames"].values()  # c h w; a server wants colours last
        observation = {"images": {camera: frame.transpose(1, 2, 0)}, "state": seen["proprio"], "prompt": info["text"]}
        reply = client.infer(observation, Extras(step=info["steps"]))
        took.append(reply.round_trip_ms)
        for action in reply.actions[:execute]:
            if not done:
                _, success, truncated, info = world.advance(action)
                done = success or truncated
        seen = world.observe()
    return success, info["steps"], took


def main(url: str, task: str, episodes: int) -> None:
    """Drives some episodes and tells how they went."""
    with Client(url, wait=120) as client:
        ((camera, about),) = client.metadata["ideomotor"]["observation"]["images"].items()
        world = MetaWorldEnv(MetaWorldConfig(task=task, size=about["height"]))
        for goal in range(FIRST_GOAL, FIRST_GOAL + episodes):
            success, steps, took = episode(client, world, camera, goal)
            told = f"{len(took)} answers of {np.median(took):.1f} ms"
            print(f"{world.text}, goal {goal}: {'done' if success else 'not done'} after {steps} steps, {told}")
        world.close()


if __name__ == "__main__":
    words = [*sys.argv[1:], *["ws://127.0.0.1:8000", "drawer-open", "1"][len(sys.argv) - 1 :]]
    main(words[0], words[1], int(words[2]))
