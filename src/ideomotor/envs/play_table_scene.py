"""The furniture of our play table, as MuJoCo's XML: made here from plain boxes, laid out like scene D of CALVIN.

Lengths are metres in CALVIN's coordinates: x to the right, y away from who sits at the table, z up, so that CALVIN's
starting states put things where they belong. Sizes of blocks and the places of table, button and cameras are CALVIN's
numbers; the shapes are our own and simpler:

* A gripper on three slides and a turning joint instead of an arm: it points straight down and cannot tilt.
* The slider is a lid with a post on it, over one of two compartments; it is pushed along x.
* The lever slides along y: back is on.
* The button springs back; each press turns the LED on or off.
* The drawer opens to the front, and a bar before it can be hooked from above.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

BLOCKS = ("red", "blue", "pink")
"""In the order of ``scene_obs``."""
BLOCK_SIZES = {"red": (0.056, 0.04, 0.04), "blue": (0.04, 0.04, 0.04), "pink": (0.08, 0.04, 0.04)}
ON_TABLE, ON_PLANK, IN_DRAWER, STACKED = 0.46, 0.461, 0.375, 0.50
"""Height of a block's middle where it lies."""
SLIDER, DRAWER, BUTTON, LEVER = 0.28, 0.22, 0.02, 0.088
"""How far each goes: the slider to the left, the drawer to the front, the button down, the lever back."""
HANDLES = {"slider": (0.04, 0.10), "drawer": (0.18, -0.245), "button": (-0.12, -0.12), "lever": (0.30, 0.03)}
"""x and y of what is taken hold of, everything at 0."""
LID = 0.115
"""Half the width of the slider's lid."""
COMPARTMENTS = ((-0.23, 0.0924), (0.04, 0.0924))
"""Middle of the left one, free while the slider is right (0), and of the right one."""

_COLOURS = {"red": "0.9 0.1 0.1 1", "blue": "0.1 0.2 0.9 1", "pink": "0.95 0.15 0.8 1"}
_WOOD, _DARK, _GREY = "0.66 0.48 0.30 1", "0.50 0.35 0.21 1", "0.25 0.25 0.27 1"
_WHITE = "0.88 0.88 0.90 1"
OFF, BULB_ON, LED_ON = (0.95, 0.95, 0.95, 1.0), (1.0, 0.9, 0.1, 1.0), (0.1, 0.9, 0.2, 1.0)
# CALVIN's static camera: where it stands, what it looks at, what is up for it; it sees 10 degrees.
_EYE, _AT, _UP = (2.8715, -2.1666, 2.5552), (-0.0262, -0.0302, 0.3920), (0.4041, 0.2263, 0.8863)


def scene_xml() -> str:
    """Returns the model."""
    return f"""
<mujoco model="play table">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{1 / 240}" integrator="implicitfast" cone="elliptic" impratio="5"/>
  <visual><headlight ambient="0.45 0.45 0.45" diffuse="0.45 0.45 0.45" specular="0.1 0.1 0.1"/>
    <map znear="0.005" zfar="20"/></visual>
  <asset>
    <texture name="floor" type="2d" builtin="checker" rgb1="0.92 0.92 0.92" rgb2="0.8 0.8 0.8" width="64" height="64"/>
    <material name="floor" texture="floor" texrepeat="8 8" reflectance="0"/>
    <texture name="sky" type="skybox" builtin="flat" rgb1="1 1 1" width="8" height="48"/>
  </asset>
  <default>
    <geom contype="0" conaffinity="1" condim="4" friction="1 0.01 0.0001" margin="0.001" gap="0.001" rgba="{_WOOD}"/>
    <default class="seen"><geom contype="0" conaffinity="0" group="1"/></default>
    <default class="mover"><geom contype="1" conaffinity="1"/></default>
  </default>
  <worldbody>
    <light pos="0.5 -1 3" dir="-0.1 0.3 -1" directional="true" diffuse="0.5 0.5 0.5" castshadow="false"/>
    <camera name="static" pos="{_numbers(_EYE)}" xyaxes="{_axes()}" fovy="10"/>
    <geom name="floor" type="plane" size="3 3 0.1" material="floor" rgba="1 1 1 1"/>
    {_furniture()}
    {_moving()}
    {"".join(_block(name) for name in BLOCKS)}
    {_hand()}
  </worldbody>
  <contact><exclude body1="finger_left" body2="finger_right"/></contact>
  <actuator>
    {"".join(_servo(axis, kp=3000, kv=150, force=60) for axis in ("hand_x", "hand_y", "hand_z"))}
    {_servo("hand_yaw", kp=20, kv=1, force=5)}
    {_servo("finger_left", kp=400, kv=10, force=12)}
    {_servo("finger_right", kp=400, kv=10, force=12)}
  </actuator>
</mujoco>"""


def _furniture() -> str:
    legs = [_box("", (x, y, 0.21), (0.02, 0.02, 0.21), _DARK, seen=True) for x in (-0.41, 0.41) for y in (-0.15, 0.15)]
    return f"""<body name="table">
      {_box("top", (0, -0.065, 0.43), (0.44, 0.115, 0.01))}
      {_box("top_left", (-0.40, 0.115, 0.43), (0.04, 0.065, 0.01))}
      {_box("top_right", (0.305, 0.115, 0.43), (0.135, 0.065, 0.01))}
      {_box("back", (-0.10, 0.17, 0.49), (0.28, 0.01, 0.06), _DARK)}
      {_box("wall_left", (-0.365, 0.105, 0.47), (0.005, 0.055, 0.03), _DARK)}
      {_box("wall_middle", (-0.09, 0.105, 0.47), (0.005, 0.055, 0.03), _DARK)}
      {_box("wall_right", (0.17, 0.105, 0.47), (0.005, 0.055, 0.03), _DARK)}
      {"".join(legs)}
      {_box("slot", (0.30, 0.075, 0.4405), (0.016, 0.065, 0.001), _GREY, seen=True)}
      {_box("led", (-0.12, 0.17, 0.56), (0.05, 0.01, 0.012), _numbers(OFF), seen=True)}
      {_box("stand", (0.40, 0.15, 0.52), (0.008, 0.008, 0.08), _GREY, seen=True)}
      <geom name="bulb" class="seen" type="sphere" pos="0.40 0.15 0.61" size="0.028" rgba="{_numbers(OFF)}"/>
    </body>
    <body name="plank">{_box("plank", (-0.0975, 0.105, 0.4305), (0.2625, 0.055, 0.0105), _DARK)}</body>"""


def _moving() -> str:
    slider, drawer, button, lever = (HANDLES[name] for name in ("slider", "drawer", "button", "lever"))
    posts = [_box("", (x, -0.21, 0.375), (0.008, 0.03, 0.008), _GREY) for x in (-0.07, 0.07)]
    return f"""<body name="slider" pos="{slider[0]} 0 0" gravcomp="1">
      {_joint("slider", "-1 0 0", SLIDER, friction=1.5, damping=8)}
      {_box("lid", (0, 0.0955, 0.515), (LID, 0.0645, 0.005), mass=0.4)}
      {_box("panel", (0, 0.035, 0.483), (LID, 0.004, 0.037), mass=0.2)}
      {_box("post", (0, slider[1], 0.55), (0.012, 0.03, 0.03), _GREY, mass=0.1)}
    </body>
    <body name="drawer" pos="{drawer[0]} 0 0" gravcomp="1">
      {_joint("drawer", "0 -1 0", DRAWER, friction=1.5, damping=8)}
      {_box("drawer_floor", (0, -0.06, 0.35), (0.115, 0.115, 0.005), mass=0.3)}
      {_box("drawer_front", (0, -0.175, 0.375), (0.12, 0.005, 0.035), mass=0.1)}
      {_box("drawer_rear", (0, 0.05, 0.38), (0.115, 0.005, 0.025), mass=0.1)}
      {_box("drawer_left", (-0.11, -0.06, 0.38), (0.005, 0.11, 0.025), mass=0.1)}
      {_box("drawer_right", (0.11, -0.06, 0.38), (0.005, 0.11, 0.025), mass=0.1)}
      {_box("bar", (0, drawer[1], 0.375), (0.08, 0.01, 0.01), _GREY, mass=0.1)}
      {"".join(posts)}
    </body>
    <body name="button" pos="{button[0]} {button[1]} 0" gravcomp="1">
      {_joint("button", "0 0 -1", BUTTON, friction=0, damping=4, stiffness=150)}
      <geom name="button" type="cylinder" pos="0 0 0.4575" size="0.026 0.0175" rgba="0.08 0.08 0.08 1" mass="0.05"/>
    </body>
    <body name="lever" pos="{lever[0]} {lever[1]} 0" gravcomp="1">
      {_joint("lever", "0 1 0", LEVER, friction=1.5, damping=8)}
      {_box("lever", (0, 0, 0.485), (0.014, 0.009, 0.04), _GREY, mass=0.2)}
    </body>"""


def _block(name: str) -> str:
    size = _numbers(side / 2 for side in BLOCK_SIZES[name])
    return f"""<body name="{name}"><freejoint name="{name}"/>
      <geom name="{name}" class="mover" type="box" size="{size}" mass="0.08" rgba="{_COLOURS[name]}"/></body>"""


def _hand() -> str:
    slides = "".join(
        f'<joint name="hand_{axis}" type="slide" axis="{direction}"/>'
        for axis, direction in (("x", "1 0 0"), ("y", "0 1 0"), ("z", "0 0 1"))
    )
    return f"""<body name="hand" gravcomp="1">{slides}<joint name="hand_yaw" type="hinge" axis="0 0 1"/>
      <geom name="palm" class="mover" type="box" pos="0 0 0.115" size="0.02 0.055 0.025" mass="0.8" rgba="{_WHITE}"/>
      <geom name="wrist" class="seen" type="cylinder" pos="0 0 0.19" size="0.03 0.05" mass="0" rgba="{_WHITE}"/>
      <geom name="arm" class="seen" type="capsule" fromto="0 0 0.24 0 0 0.8" size="0.035" mass="0" rgba="{_WHITE}"/>
      <camera name="gripper" pos="0.075 0 0.13" xyaxes="0 1 0 -0.94 0 0.34" fovy="75"/>
      {_finger("left", -1)}{_finger("right", 1)}
    </body>"""


def _finger(name: str, side: int) -> str:
    return f"""<body name="finger_{name}" gravcomp="1">
        <joint name="finger_{name}" type="slide" axis="0 {side} 0" range="0 0.04"/>
        <geom name="finger_{name}" class="mover" type="box" pos="0 {0.006 * side} 0.04" size="0.01 0.006 0.05"
          mass="0.05" friction="1.5 0.02 0.0001" rgba="{_GREY}"/></body>"""


def _box(
    name: str,
    place: tuple[float, float, float],
    half: tuple[float, float, float],
    colour: str = _WOOD,
    *,
    seen: bool = False,
    mass: float = 0.05,
) -> str:
    called = f'name="{name}" ' if name else ""
    kind = 'class="seen" ' if seen else ""
    shape = f'type="box" pos="{_numbers(place)}" size="{_numbers(half)}"'
    return f'<geom {called}{kind}{shape} rgba="{colour}" mass="{mass}"/>'


def _joint(name: str, axis: str, far: float, *, friction: float, damping: float, stiffness: float = 0) -> str:
    return (
        f'<joint name="{name}" type="slide" axis="{axis}" range="0 {far}" frictionloss="{friction}" '
        f'damping="{damping}" stiffness="{stiffness}"/>'
    )


def _servo(joint: str, *, kp: float, kv: float, force: float) -> str:
    return f'<position name="{joint}" joint="{joint}" kp="{kp}" kv="{kv}" forcerange="{-force} {force}"/>'


def _axes() -> str:
    back = np.subtract(_EYE, _AT)
    right = np.cross(_UP, back)
    up = np.cross(back, right)
    return _numbers([*right, *up])


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
