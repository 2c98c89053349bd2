"""Valid files of every kind that drct opens, small, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pillow_heif
import pyvips
import torch
from PIL import Image, ImageCms

from drct.datasets.pack import write_pack
from drct.imaging import Picture, write
from drct.networks import create_network
from drct.training.checkpoint import State, save_state
from drct.weights import save_network

HEIGHT, WIDTH = 40, 50


def waves(channels: int, dtype: str = "uint8") -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
    values = np.stack([0.5 + 0.4 * np.sin(9 * x + 5 * y + c) * np.cos(4 * x - 7 * y) for c in range(channels)], axis=-1)
    peak = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    return (values * peak).astype(dtype)


def make_corpus(folder: Path) -> None:
    """Write the corpus: images, weight files, the state of a training run, and the index of a pack beside its pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    _images(folder)
    _animations(folder)
    _checkpoints(folder)
    write_pack(folder / "pack", [("a.png", waves(3)), ("b.png", waves(3)[:7, :9])])
    (folder / "index.json").write_bytes((folder / "pack" / "index.json").read_bytes())


def _images(folder: Path) -> None:
    colour, grey = waves(3), waves(1)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = Image.Exif()
    tags[0x010F], tags[0x0112] = "maker", 6
    details = tags.get_ifd(0x8769)
    details[0xA002], details[0x927C] = WIDTH, b"note \0\1\2"
    full = Picture(colour, grey[:, :, 0], profile, tags.tobytes().removeprefix(b"Exif\0\0"), b"<x:xmpmeta/>")
    for suffix in ("png", "jpg", "webp", "tif"):
        write(folder / f"full.{suffix}", full)
        write(folder / f"grey.{suffix}", grey)
    write(folder / "deep.png", waves(3, "uint16"))
    write(folder / "float.tif", waves(3, "float32"))
    image = pyvips.Image.new_from_array(colour)
    image.jpegsave(str(folder / "progressive.jpg"), interlace=True)
    image.icc_transform("cmyk", input_profile="srgb").jpegsave(str(folder / "cmyk.jpg"))
    image.webpsave(str(folder / "lossless.webp"), lossless=True)
    image.tiffsave(str(folder / "jpeg.tif"), compression="jpeg", tile=True)
    image.tiffsave(str(folder / "lzw.tif"), compression="lzw", bigtiff=True)
    image.pngsave(str(folder / "palette.png"), palette=True, interlace=True)
    image.gifsave(str(folder / "still.gif"))
    image.heifsave(str(folder / "still.avif"), compression="av1")
    photo = pillow_heif.from_bytes("RGBA", (WIDTH, HEIGHT), np.ascontiguousarray(waves(4)).tobytes())
    photo.info["exif"] = tags.tobytes()
    photo.save(folder / "still.heic")


def _animations(folder: Path) -> None:
    frames = [Image.fromarray(np.roll(waves(3), 5 * i, 1)) for i in range(3)]
    more = {"save_all": True, "append_images": frames[1:], "duration": [40, 80, 120], "loop": 2}
    frames[0].save(folder / "moving.gif", **more)
    frames[0].save(folder / "moving.webp", **more)
    frames[0].save(folder / "moving.png", **more)
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])


def _checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    small = {"embed_dim": 8, "gc": 4, "depths": [1], "num_heads": [2], "window_size": 4, "upsampler": "pixelshuffledirect"}
    network = create_network("drct", scale=2, **small)
    swinir = create_network("swinir_light", scale=2, embed_dim=6, depths=[1], num_heads=[2], window_size=4)
    save_network(network, folder / "own.safetensors")
    torch.save({"params_ema": network.state_dict()}, folder / "ema.pth")
    torch.save(swinir.state_dict(), folder / "bare.pth")
    torch.save({"params": network.state_dict()}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    optimizer = torch.optim.Adam(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step()
    state = State(7, network.state_dict(), network.state_dict(), 7, optimizer.state_dict(), {"psnr": 30.0}, "0" * 64)
    save_state(state, folder).rename(folder / "run.state")
