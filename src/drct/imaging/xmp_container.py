"""What an XMP packet tells of things that stand behind the picture in its file: gain maps (Ultra HDR), the videos of motion photos
and other items of a container. Results have none of them and must not claim them.

Cut out in place, and not by a parse and a rebuild, so that all else stays byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Set
from xml.parsers import expat

_GAIN_MAP = "http://ns.adobe.com/hdr-gain-map/1.0/"
_CAMERA = "http://ns.google.com/photos/1.0/camera/"
_CONTAINER = {f"http://ns.google.com/photos/{version}/container/{kind}" for version in ("1.0", "dd/1.0") for kind in ("", "item/")}
_VIDEO = ("MotionPhoto", "MicroVideo")  # how the names of the camera's attributes begin
_ATTRIBUTE = re.compile(rb"""\s+([^\s=/>]+)\s*=\s*("[^"]*"|'[^']*')""")
_TAG = re.compile(rb"<[^\s/>]+(?:" + _ATTRIBUTE.pattern + rb")*\s*(?P<slash>/?)>")
_SEMANTIC = re.compile(rb"""\bSemantic\s*(?:=\s*["']|>)\s*(\w+)""")
_IS_VIDEO = re.compile(rb"""\b(?:MotionPhoto|MicroVideo)\s*(?:=\s*["']|>)\s*1\b""")


def without_container(packet: bytes) -> tuple[bytes, Set[str]]:
    """Take out all that a packet tells of things behind the picture.

    Returns:
        The packet, and of what it told: ``"gain map"``, ``"video"``, ``"picture"``. A packet that is no sound XML in UTF-8 stays as
        it is and tells nothing.
    """
    if not any(space.encode() in packet for space in (_GAIN_MAP, _CAMERA, *_CONTAINER)):
        return packet, frozenset()
    try:
        finder = _Finder(packet)
        begins, ends = [begin for begin, _ in finder.cuts], [end for _, end in finder.cuts]
        told = b" ".join(packet[begin:end] for begin, end in finder.cuts)
        rest = b"".join(packet[end:begin] for end, begin in zip([0, *ends], [*begins, len(packet)], strict=True))
        _parse(expat.ParserCreate("UTF-8", " "), rest)  # no name has lost its namespace
    except (expat.ExpatError, ValueError):
        return packet, frozenset()
    semantics = set(_SEMANTIC.findall(told))
    kinds = {
        "gain map": finder.has_gain_map or b"GainMap" in semantics,
        "video": _IS_VIDEO.search(told) is not None or b"MotionPhoto" in semantics,
        "picture": bool(semantics - {b"Primary", b"GainMap", b"MotionPhoto"}),
    }
    return rest, {kind for kind, found in kinds.items() if found}


def _parse(parser: expat.XMLParserType, packet: bytes) -> None:
    parser.Parse(packet.rstrip(b"\0"), True)


class _Finder:
    """Where elements and attributes to be cut out stand.

    Attributes:
        cuts: their first bytes and those behind them, from front to back.
        has_gain_map: whether one of them tells of a gain map.

    Raises:
        ExpatError, ValueError: the packet is no sound XML, or one with entities of its own.
    """

    def __init__(self, packet: bytes) -> None:
        self.cuts: list[tuple[int, int]] = []
        self.has_gain_map = False
        self._packet = packet
        self._spaces: dict[str, str] = {}
        self._depth = 0
        self._cut_from: tuple[int, int] | None = None  # depth and first byte of an element that is cut out with its content
        self._parser = expat.ParserCreate("UTF-8")
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        _parse(self._parser, packet)

    def _refuse(self, *_: object) -> None:
        raise ValueError("entities")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._spaces |= {key.removeprefix("xmlns:"): value for key, value in attributes.items() if key.startswith("xmlns:")}
        begin = self._parser.CurrentByteIndex
        tag = _TAG.match(self._packet, begin)
        if tag is None:
            raise ValueError("not in UTF-8")
        if self._cut_from is not None:
            return
        if self._goes(name):
            self._cut_from = self._depth, begin
            return
        at = begin + 1 + len(name.encode())
        while attribute := _ATTRIBUTE.match(self._packet, at):
            at = attribute.end()
            key = attribute[1].decode()
            if self._goes(key) or (key.startswith("xmlns:") and attributes[key] in {_GAIN_MAP, *_CONTAINER}):
                self.cuts.append(attribute.span())

    def _end(self, name: str) -> None:
        if self._cut_from is not None and self._cut_from[0] == self._depth:
            begin = self._cut_from[1]
            tag = _TAG.match(self._packet, begin)
            assert tag is not None
            end = tag.end() if tag["slash"] else self._packet.index(b">", self._parser.CurrentByteIndex) + 1
            self.cuts.append((begin, end))
            self._cut_from = None
        self._depth -= 1

    def _goes(self, name: str) -> bool:
        """Whether an element or attribute tells of something behind the picture."""
        prefix, _, local = name.rpartition(":")
        space = self._spaces.get(prefix)
        self.has_gain_map = self.has_gain_map or space == _GAIN_MAP
        return space == _GAIN_MAP or space in _CONTAINER or (space == _CAMERA and local.startswith(_VIDEO))
