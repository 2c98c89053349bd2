"""Small files that claim, or unpack to, far more than they are."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

GIGA = 1 << 30


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *extra: bytes, pixels: bytes | None = None, depth: int = 8, colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    rows = zlib.compress(bytes(height * (1 + -(-width * depth // 8)))) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """So many zeros as a zlib stream. A flush makes the packer forget, so every mebibyte is packed into the same bytes."""
    packer = zlib.compressobj(9, wbits=-15)
    mebibyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(count % (1 << 20))) + packer.flush()
    return b"\x78\x9c" + mebibyte * (count >> 20) + rest + struct.pack(">I", count % 65521 << 16 | 1)


def png_with_text(kind: bytes) -> bytes:
    packed = zeros(2 * GIGA)
    body = {
        b"zTXt": b"a\0\0" + packed,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + packed,
        b"iCCP": b"p\0\0" + packed,
    }[kind]
    return png(8, 8, chunk(kind, body))


def tiff(*entries: tuple[int, int, int, int], following: int = 0, tail: bytes = b"", order: str = "<") -> bytes:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    body = b"".join(struct.pack(order + "HHII", *entry) for entry in sorted(entries))
    return head + struct.pack(order + "H", len(entries)) + body + struct.pack(order + "I", following) + tail


def tiff_picture(width: int, height: int, *more: tuple[int, int, int, int], following: int = 0, tail: bytes = b"") -> bytes:
    plain = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    return tiff(*plain, *more, following=following, tail=tail)


def tiff_chain(count: int) -> bytes:
    """Directories that follow each other, a pixel each."""
    data = bytearray(b"II*\0" + struct.pack("<I", 10) + b"\0\0")
    entries = [(256, 4, 1), (257, 4, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 1), (279, 4, 1)]
    for i in range(count):
        data += struct.pack("<H", len(entries))
        data += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
        data += struct.pack("<I", len(data) + 4 if i + 1 < count else 0)
    return bytes(data)


def gif(width: int, height: int, frames: int = 1) -> bytes:
    """One pixel on a large canvas, or many of them."""
    image = b"!\xf9\x04\0\1\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff" + image * frames + b";"


def webp(width: int, height: int) -> bytes:
    """A lossless picture of one colour in a few bytes: its size, no transforms, codes of a single symbol."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + b"\x88\x88\x08\x04\0\0\0"
    body += b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def webp_canvas(width: int, height: int) -> bytes:
    """An animation of one pixel on a large canvas."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    data = bytearray(file.getvalue())
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return bytes(data)


def jpeg_of_many_scans(scans: int) -> bytes:
    """A large progressive JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (4000, 4000), 90).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def jpeg_of_size(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_with_profile_parts() -> bytes:
    """An ICC profile that claims 255 parts, each of which is there and full."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    data = file.getvalue()
    part = b"ICC_PROFILE\0%c\xff" + bytes(65000)
    markers = b"".join(b"\xff\xe2" + struct.pack(">H", len(part) - 1 + 2) + part.replace(b"%c", bytes([i])) for i in range(1, 256))
    return data[:2] + markers + data[2:]


def exif_loop() -> bytes:
    """A JPEG whose EXIF directories point to each other."""
    directory = struct.pack("<H", 3) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHII", 0x8825, 4, 1, 8)
    directory += struct.pack("<HHII", 0xA005, 4, 1, 8) + struct.pack("<I", 8)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    data = file.getvalue()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def avif_of_size(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "AVIF")
    data = bytearray(file.getvalue())
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", width, height)
    return bytes(data)


def pth(content: object, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    if not compressed:
        return file.getvalue()
    again = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    return again.getvalue()


def pth_with_pickle(data: bytes) -> bytes:
    """An archive whose pickle is exchanged."""
    file, again = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(1)}, file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(again, "w") as changed:
        for name in archive.namelist():
            changed.writestr(name, data if name.endswith("data.pkl") else archive.read(name))
    return again.getvalue()


def zip_bomb() -> bytes:
    """Gigabytes of zeros as the pickle of a weight file, deflated."""
    name, size, packed = b"archive/data.pkl", 2 * GIGA - 1, zeros(2 * GIGA - 1)[2:-4]
    sizes = struct.pack("<III", 0, len(packed), size) + struct.pack("<HH", len(name), 0)
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes + name
    central = b"PK\1\2" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 33) + sizes + bytes(12) + name
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    return local + packed + central + end


def doubling() -> bytes:
    """A pickle of thirty lists, each of which holds the one before twice: as a tree, a billion of them."""
    ops = b"\x80\x02]q\0"
    for i in range(1, 31):
        ops += b"](h%ch%ceq%c" % (i - 1, i - 1, i)
    return pth_with_pickle(ops + b".")


def wide_network(width: int) -> dict[str, torch.Tensor]:
    """A network a few bytes large by strides of zero, and enormous when it is built."""
    from drct.networks import create_network

    small = create_network("drct", scale=2, embed_dim=8, gc=4, depths=[1], num_heads=[2], window_size=4)
    grown = {}
    for name, tensor in small.state_dict().items():
        shape = [side * width // 8 if side in (8, 16, 24) else side for side in tensor.shape]
        grown[name] = torch.zeros(1).expand(shape) if tensor.is_floating_point() else tensor
    return {"params": grown}


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def huge_tensor(shape: list[int]) -> bytes:
    return safetensors({"conv_first.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}, bytes(8))


def huge_int() -> bytes:
    return pth_with_pickle(b"\x80\x02}(X\1\0\0\0a\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\xff" * 100)


BOMBS: dict[str, Callable[[], bytes]] = {
    "sides.png": lambda: png(100_000, 100_000, pixels=zlib.compress(bytes(1000))),
    "unpacks.png": lambda: png(30_000, 30_000, pixels=zeros(30_001 * 30_000)),
    "text.png": lambda: png_with_text(b"zTXt"),
    "xmp.png": lambda: png_with_text(b"iTXt"),
    "profile.png": lambda: png_with_text(b"iCCP"),
    "many-texts.png": lambda: png(8, 8, chunk(b"tEXt", b"a\0b") * 200_000),
    "many-frames.png": lambda: png(8, 8, chunk(b"acTL", struct.pack(">II", (1 << 31) - 1, 0))),
    "canvas.gif": lambda: gif(65535, 65535),
    "many-frames.gif": lambda: gif(100, 100, 30_000),
    "canvas.webp": lambda: webp_canvas(1 << 24, 1 << 24),
    "flat.webp": lambda: webp(16383, 16383),
    "sides.tif": lambda: tiff_picture(1_000_000, 1_000_000, (273, 4, 1, 8), (278, 4, 1, 1_000_000), (279, 4, 1, 8)),
    "strips.tif": lambda: tiff_picture(100, 100, (273, 4, 0x0FFFFFFF, 8), (278, 4, 1, 1), (279, 4, 0x0FFFFFFF, 8)),
    "samples.tif": lambda: tiff((256, 4, 1, 9), (257, 4, 1, 9), (258, 3, 0x7FFFFFFF, 8), (262, 3, 1, 1), (277, 3, 1, 65535)),
    "tiles.tif": lambda: tiff_picture(
        9, 9, (322, 4, 1, 1 << 20), (323, 4, 1, 1 << 20), (324, 4, 1, 8), (325, 4, 1, 100), tail=bytes(100)
    ),
    "loop.tif": lambda: tiff_picture(9, 9, (273, 4, 1, 8), (278, 4, 1, 9), (279, 4, 1, 81), following=8, tail=bytes(200)),
    "sub-loop.tif": lambda: tiff_picture(
        9, 9, (273, 4, 1, 8), (278, 4, 1, 9), (279, 4, 1, 81), (330, 4, 1, 8), (34665, 4, 1, 8), tail=bytes(200)
    ),
    "pages.tif": lambda: tiff_chain(20_000),
    "scans.jpg": lambda: jpeg_of_many_scans(3000),
    "sides.jpg": lambda: jpeg_of_size(65500, 65500),
    "profile.jpg": jpeg_with_profile_parts,
    "exif.jpg": exif_loop,
    "sides.avif": lambda: avif_of_size(1 << 20, 1 << 20),
    "zip.pth": zip_bomb,
    "doubling.pth": doubling,
    "integer.pth": huge_int,
    "strides.pth": lambda: pth({"params": {"conv_first.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}}),
    "wide.pth": lambda: pth(wide_network(40_000)),
    "deep.pth": lambda: pth_with_pickle(b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b"."),
    "code.pth": lambda: pickle.dumps(print),
    "header.safetensors": lambda: safetensors(b"{", length=(1 << 63) - 1),
    "deep.safetensors": lambda: safetensors(b'{"a":' * 100_000),
    "shape.safetensors": lambda: huge_tensor([1 << 31, 1 << 31]),
    "overflow.safetensors": lambda: huge_tensor([1 << 32, 1 << 32, 2]),
    "deep.json": lambda: b"[" * 1_000_000,
    "sides.json": lambda: json.dumps({"format": "drct-pack-1", "images": [["a", 1 << 62, 1 << 62, 0]]}).encode(),
}


def make_bombs(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in BOMBS.items():
        (folder / name).write_bytes(make())
