"""Pictures of a Meta-World simulator, drawn without a screen: fast or in its own look, upright, VPDD's crop."""

from __future__ import annotations

import atexit
import copy
import math
import os
import sys
from types import ModuleType
from typing import Any, Literal

import numpy as np

from ideomotor.extras import require

# MuJoCo chooses its OpenGL when it is first imported, which is later than this module; EGL needs no screen.
os.environ.setdefault("MUJOCO_GL", "egl")

CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
# VPDD looks at rows and columns 110..369 of a 480 px picture of corner2: its middle, 260 / 480 of each side.
_CROP_CAMERA, _CROP = "corner2", 260 / 480
# Cameras so near the robot that a simplified surface would show.
_NEAR = ("behindGripper", "gripperPOV")
# The fast look merges vertices nearer than this to one another, times 96 / size: about a pixel of the doubled picture.
# Two thirds of the triangles go, and with them a third of the time; pictures differ by 0.2 of 255 in the mean.
_MERGE_M = 0.004
_MAX_GEOMS = 2000  # the fullest of the 50 scenes draws fewer than 200


class Eye:
    """The cameras of one simulator.

    Simulators of one task in one process share an OpenGL context (60 MB and half a second to make), which is freed with
    the last of them. Like every OpenGL context it serves one thread.
    """

    def __init__(self, model: Any, *, task: str, size: int, look: Literal["fast", "default"], crop: str | None) -> None:
        if crop == "vpdd":
            # The crop is the middle of the picture, so a narrower angle draws exactly it, at the size that is wanted.
            camera = model.camera(_CROP_CAMERA).id
            half = math.radians(model.cam_fovy[camera]) / 2
            model.cam_fovy[camera] = 2 * math.degrees(math.atan(math.tan(half) * _CROP))
        self._model, self._task, self._size, self._look = model, task, size, look
        self._canvases: dict[bool, tuple[_Key, _Canvas]] = {}

    def look(self, data: Any, camera: str) -> np.ndarray:
        """Returns what one camera sees, upright (uint8, c h w)."""
        picture = self._canvas(camera in _NEAR).draw(self._model, data, self._model.camera(camera).id)
        # OpenGL's first row is the bottom one. The four corner cameras hang upside down and are to be turned by 180
        # degrees, which leaves only left and right to swap.
        picture = picture[:, ::-1] if camera.startswith("corner") else picture[::-1]
        return np.ascontiguousarray(picture.transpose(2, 0, 1))

    def objects(self, data: Any, camera: str) -> np.ndarray:
        """Returns where one camera sees what is ``movable`` (bool, h w; the pixels of ``look``)."""
        mask = self._canvas(camera in _NEAR).draw_mask(self._model, data, self._model.camera(camera).id)
        return np.ascontiguousarray(mask[:, ::-1] if camera.startswith("corner") else mask[::-1])

    def close(self) -> None:
        """Gives the shared context back."""
        for key, canvas in self._canvases.values():
            canvas.users -= 1
            if canvas.users == 0:
                _canvases.pop(key).close()
        self._canvases = {}

    def _canvas(self, near: bool) -> _Canvas:
        if near not in self._canvases:
            # The process is part of the key because a context does not survive a fork.
            key = (os.getpid(), self._task, self._size, self._look, near)
            if key not in _canvases:
                _canvases[key] = _Canvas(self._model, self._size, self._look, near)
                # MuJoCo shuts EGL down at exit, and contexts freed after that print a traceback each. Handlers run last
                # in, first out, so this one must be registered after MuJoCo's, which the first context registers.
                atexit.unregister(_close_canvases)
                atexit.register(_close_canvases)
            _canvases[key].users += 1
            self._canvases[near] = key, _canvases[key]
        return self._canvases[near][1]


class _Canvas:
    """An OpenGL context with one task's meshes and textures, and its drawing surface."""

    def __init__(self, model: Any, size: int, look: str, near: bool) -> None:
        self.users = 0
        mujoco = self._mujoco = require("mujoco", "metaworld")
        self._fast = look == "fast"
        side = size * (2 if self._fast else 1)
        model = copy.copy(model)  # the context takes meshes and settings from it, and it is dropped again
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        if self._fast:
            # The shadow map alone is 64 MB, and is made even where no shadow is drawn.
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
            if not near:
                _simplify(model, _MERGE_M * 96 / size)
        try:
            self._gl = mujoco.gl_context.GLContext(side, side)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except (ImportError, AttributeError, RuntimeError, OSError, mujoco.FatalError) as error:
            raise RuntimeError(no_gl(error)) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        if self._fast:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = 0
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rect = mujoco.MjrRect(0, 0, side, side)
        self._pixels = np.empty((side, side, 3), np.uint8)

    def draw(self, model: Any, data: Any, camera: int) -> np.ndarray:
        """Returns the picture as OpenGL has it: bottom row first (h w c)."""
        self._shoot(model, data, camera)
        if not self._fast:
            return self._pixels
        wide = self._pixels.astype(
            np.uint16
        )  # the mean of 2 x 2 pixels stands in for multisampling, at a tenth of its cost
        mean = (wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2] + 2) >> 2
        return mean.astype(np.uint8)

    def _shoot(self, model: Any, data: Any, camera: int) -> None:
        mujoco = self._mujoco
        self._camera.fixedcamid = camera
        self._gl.make_current()
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._context)

    def draw_mask(self, model: Any, data: Any, camera: int) -> np.ndarray:
        """Returns where movable geoms are in sight, bottom row first (bool, h w)."""
        flags = [int(flag) for flag in (self._mujoco.mjtRndFlag.mjRND_SEGMENT, self._mujoco.mjtRndFlag.mjRND_IDCOLOR)]
        self._scene.flags[flags] = 1
        try:
            self._shoot(model, data, camera)
        finally:
            self._scene.flags[flags] = 0
        shown = self._pixels.astype(np.int32) @ np.array([1, 256, 256**2], np.int32)  # 0 is nothing, else an id + 1
        geoms = self._scene.geoms[: self._scene.ngeom]
        wanted, chosen = movable(model), np.zeros(_MAX_GEOMS + 1, bool)
        for geom in geoms:
            if geom.objtype == self._mujoco.mjtObj.mjOBJ_GEOM:
                chosen[geom.segid + 1] = wanted[geom.objid]
        mask = chosen[shown]
        if not self._fast:
            return mask
        # An object owns a pixel where it covers half of it.
        return (mask[::2, ::2].astype(int) + mask[1::2, ::2] + mask[::2, 1::2] + mask[1::2, 1::2]) >= 2

    def close(self) -> None:
        self._gl.make_current()
        self._context.free()
        self._gl.free()


_Key = tuple[int, str, int, str, bool]
_canvases: dict[_Key, _Canvas] = {}


def _close_canvases() -> None:
    for key in [key for key in _canvases if key[0] == os.getpid()]:
        _canvases.pop(key).close()


def _simplify(model: Any, cell: float) -> None:
    """Merges the vertices of each mesh that lie in one cubic cell, and drops the triangles that this leaves empty."""
    for mesh in range(model.nmesh):
        first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        if count < 1000:
            continue
        start = model.mesh_vertadr[mesh]
        vertices = model.mesh_vert[start : start + model.mesh_vertnum[mesh]].astype(np.float64)
        _, cells = np.unique(np.floor(vertices / cell).astype(np.int64), axis=0, return_inverse=True)
        cells = cells.reshape(-1)
        sums = np.stack([np.bincount(cells, vertices[:, axis]) for axis in range(3)], axis=1)
        centres = sums / np.bincount(cells)[:, None]
        # Each cell keeps the vertex that is nearest its centre of mass.
        order = np.lexsort((np.linalg.norm(vertices - centres[cells], axis=1), cells))
        kept = order[np.searchsorted(cells[order], np.arange(len(centres)))]
        faces = kept[cells][model.mesh_face[first : first + count]]
        whole = (faces != faces[:, [1, 2, 0]]).all(1)
        _, once = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
        rest = np.intersect1d(np.flatnonzero(whole), once)
        model.mesh_face[first : first + len(rest)] = faces[rest]
        for corners in (model.mesh_facenormal, model.mesh_facetexcoord):
            corners[first : first + len(rest)] = corners[first : first + count][rest]
        model.mesh_facenum[mesh] = len(rest)


def movable(model: Any) -> np.ndarray:
    """Returns which geoms belong to a task's objects (bool, one a geom): those that can move and are not the robot's.

    A body can move if a joint lies between it and the world. So a drawer counts and its case does not, a button counts
    and its box does not: what is fixed is background, however much it matters to the task. The robot is the tree of
    bodies that the hand is in.
    """
    bodies = np.asarray(model.geom_bodyid)
    robot = model.body_rootid[model.body("hand").id]
    return (model.body_weldid[bodies] != 0) & (model.body_rootid[bodies] != robot)


def load() -> ModuleType:
    """Imports Meta-World with an OpenGL that needs no screen.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        RuntimeError: the system has no library for drawing without a screen; the message names the packages.
    """
    try:
        require("mujoco", "metaworld")
    except ModuleNotFoundError:
        raise
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise RuntimeError(no_gl(error)) from error
    return require("metaworld", "metaworld")


def no_gl(error: BaseException) -> str:
    """Returns what to tell someone on whose machine nothing can be drawn."""
    glfw = sys.modules.get("mujoco.glfw")
    if glfw is not None and not os.environ.get("DISPLAY"):
        return (
            "mujoco was imported before ideomotor's worlds and chose an OpenGL that needs a screen: "
            f"set MUJOCO_GL=egl before anything imports mujoco ({type(error).__name__}: {error})"
        )
    return (
        f"no OpenGL context could be made for the simulator's pictures (MUJOCO_GL={os.environ.get('MUJOCO_GL')}): "
        f"{type(error).__name__}: {error}. On Debian or Ubuntu run "
        "apt-get install -y --no-install-recommends libegl1 libegl-mesa0 libgl1-mesa-dri"
    )
