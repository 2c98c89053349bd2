"""Damage done to valid files, always the same for the same number."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence

MOST_BYTES = 1 << 20  # a mutant is cut here

# Words that parsers look for. A mutant gets them where they do not belong.
_WORDS: dict[str, tuple[bytes, ...]] = {
    "png": tuple(b"IHDR PLTE IDAT IEND tRNS iCCP zTXt iTXt tEXt eXIf acTL fcTL fdAT pHYs sBIT gAMA cHRM sRGB".split()),
    "jpg": (*(b"\xff" + bytes([code]) for code in range(0xC0, 0xF0)), b"Exif\0\0", b"ICC_PROFILE\0", b"Adobe\0", b"JFIF\0"),
    "webp": tuple(b"RIFF|WEBP|VP8 |VP8L|VP8X|ALPH|ANIM|ANMF|ICCP|EXIF|XMP |/\0\0\0".split(b"|")),
    "tif": tuple(
        struct.pack("<HHII", tag, kind, count, value)
        for tag in (256, 257, 258, 259, 262, 273, 277, 278, 279, 322, 324, 330, 338, 700, 34665, 34675)
        for kind, count, value in ((3, 1, 1), (4, 1, 8), (4, 0xFFFFFFFF, 8), (16, 1, 0))
    ),
    "gif": (b"GIF87a", b"GIF89a", b"!\xf9\x04", b"!\xff\x0bNETSCAPE2.0", b",", b";", b"!\xfe"),
    "avif": tuple(
        b"ftyp meta hdlr pitm iloc iinf infe iprp ipco ispe pixi av1C colr auxC ipma idat mdat iref grid dimg irot".split()
    ),
    "heic": tuple(
        b"meta hdlr pitm iloc iinf infe iprp ipco ispe pixi hvcC colr auxC ipma idat mdat iref grid dimg irot imir clap".split()
    ),
    "pth": (
        *(b"\x80\x02", b"}", b"]", b"(", b"t", b"R", b"Q", b"h\0", b"q\xff", b"u.", b"X\xff\xff\xff\xff", b"J\xff\xff\xff\x7f"),
        *(b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"),
        b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    ),
    "safetensors": (
        *(b'"F32"', b'"BF16"', b'"I64"', b'"dtype":', b'"shape":[', b'"data_offsets":[0,', b'"__metadata__":'),
        *(b"[", b"{", b"}", b"-1", b"1e309", b"18446744073709551615", b"null", b"\\ud800"),
    ),
    "json": (
        *(b"[", b"{", b"-1", b"1e309", b"NaN", b"null", b"true", b"0.5", b"18446744073709551616", b"\\u0000"),
        *(b'"images":', b'"../x"'),
    ),
}
_WORDS["tiff"] = _WORDS["tif"]
_WORDS["state"] = _WORDS["pth"]

_NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def mutate(seed: int, corpus: Sequence[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Mutant number ``seed`` of a corpus of ``(name, content)``: the name of its origin, and the damaged content."""
    random_ = random.Random(seed)
    name, data = corpus[seed % len(corpus)]
    kind = name.rpartition(".")[2]
    relatives = [content for other, content in corpus if other.rpartition(".")[2] == kind]
    inner = _INSIDE.get(kind)
    if inner is not None and random_.random() < 0.5:
        return name, inner(random_, data, relatives)[:MOST_BYTES]
    return name, _damaged(random_, data, kind, relatives)[:MOST_BYTES]


def _damaged(random_: random.Random, data: bytes, kind: str, relatives: Sequence[bytes]) -> bytes:
    result = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        random_.choice(_OPERATIONS)(random_, result, kind, relatives)
    return bytes(result)


def _place(random_: random.Random, data: bytearray, room: int = 1) -> int:
    """Somewhere in the data, half of the time near its beginning, where the headers are."""
    reach = max(1, len(data) - room + 1)
    return random_.randrange(reach if random_.random() < 0.5 else min(reach, 256))


def _flip_bits(random_: random.Random, data: bytearray, kind: str, relatives: Sequence[bytes]) -> None:
    for _ in range(random_.choice((1, 1, 2, 8, 64)) if data else 0):
        data[_place(random_, data)] ^= 1 << random_.randrange(8)


def _set_bytes(random_: random.Random, data: bytearray, kind: str, relatives: Sequence[bytes]) -> None:
    for _ in range(random_.choice((1, 1, 2, 4, 16)) if data else 0):
        data[_place(random_, data)] = random_.choice((0, 1, 127, 128, 255, random_.randrange(256)))


def _cut(random_: random.Random, data: bytearray, kind: str, relatives: Sequence[bytes]) -> None:
    del data[random_.randrange(len(data) + 1) :]


def _insert(random_: random.Random, data: bytearray, kind: str, relatives: Sequence[bytes]) -> None:
    at = _place(random_, data)
    data[at:at] = random_.randbytes(random_.choice((1, 2, 4, 40, 1000)))


def _remove(random_: random.Random, data: bytearray, kind: str, relatives: Sequence[bytes]) -> None:
    at = _place(random_, data)
    del data[at : at + random_.choice((1, 2, 4, 40, 1000))]


def _repeat(random_: random.Random, data: bytearray, kind: str, relatives: Sequence[bytes]) -> None:
    at = _place(random_, data)
    data[at:at] = data[at : at + random_.choice((1, 4, 12, 100, 1000))] * random_.choice((1, 2, 50))


def _splice(random_: random.Random, data: bytearray, kind: str, relatives: Sequence[bytes]) -> None:
    """A piece of another file of the kind, put in or laid over."""
    other = random_.choice(relatives)
    begin = random_.randrange(len(other) or 1)
    piece = other[begin : begin + random_.choice((4, 12, 64, 1000, len(other)))]
    at = _place(random_, data)
    data[at : at + (len(piece) if random_.random() < 0.5 else 0)] = piece


def _lie(random_: random.Random, data: bytearray, kind: str, relatives: Sequence[bytes]) -> None:
    """A number, perhaps a length or an offset, becomes an extreme one or is off by one."""
    size, order = random_.choice((1, 2, 4, 4, 8)), random_.choice(("big", "little"))
    at = _place(random_, data, size)
    old = int.from_bytes(data[at : at + size], order)
    new = random_.choice((*_NUMBERS, old + 1, old - 1, old * 2, len(data), len(data) - at, at))
    data[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, order)


def _speak(random_: random.Random, data: bytearray, kind: str, relatives: Sequence[bytes]) -> None:
    word = random_.choice(_WORDS[kind])
    at = _place(random_, data)
    data[at : at + (len(word) if random_.random() < 0.5 else 0)] = word


_OPERATIONS = (_flip_bits, _set_bytes, _cut, _insert, _remove, _repeat, _splice, _lie, _lie, _speak)


def _inside_png(random_: random.Random, data: bytes, relatives: Sequence[bytes]) -> bytes:
    """Damage with the checksums made good, so that it gets past them."""
    damaged = bytearray(_damaged(random_, data, "png", relatives))
    at = 8
    while at + 12 <= len(damaged):
        length = int.from_bytes(damaged[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(damaged):
            break
        damaged[end : end + 4] = zlib.crc32(damaged[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(damaged)


def _inside_zip(random_: random.Random, data: bytes, relatives: Sequence[bytes]) -> bytes:
    """Damage in one file of the archive, which stays sound; mostly in the pickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [(entry, archive.read(entry)) for entry in archive.namelist()]
    except zipfile.BadZipFile:
        return _damaged(random_, data, "pth", relatives)
    pickles = [i for i, (entry, _) in enumerate(files) if entry.endswith(".pkl")]
    at = random_.choice(pickles) if pickles and random_.random() < 0.8 else random_.randrange(len(files))
    others = [content for _, content in files]
    result = io.BytesIO()
    method = zipfile.ZIP_STORED if random_.random() < 0.9 else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(result, "w") as archive:
        for i, (entry, content) in enumerate(files):
            data_ = _damaged(random_, content, "pth", others) if i == at else content
            archive.writestr(zipfile.ZipInfo(entry), data_, method)  # dated 1980, not now
    return result.getvalue()


def _inside_safetensors(random_: random.Random, data: bytes, relatives: Sequence[bytes]) -> bytes:
    """Damage in the header, whose length is made good."""
    length = int.from_bytes(data[:8], "little")
    header = _damaged(random_, data[8 : 8 + length], "safetensors", [data[8 : 8 + length]])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


_INSIDE: dict[str, Callable[[random.Random, bytes, Sequence[bytes]], bytes]] = {
    "png": _inside_png,
    "pth": _inside_zip,
    "state": _inside_zip,
    "safetensors": _inside_safetensors,
}
