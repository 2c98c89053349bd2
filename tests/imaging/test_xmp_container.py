"""XMP packets that tell of things behind the picture."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drct.imaging.xmp_container import without_container

HDR, CAMERA = b"http://ns.adobe.com/hdr-gain-map/1.0/", b"http://ns.google.com/photos/1.0/camera/"
CONTAINER = b"http://ns.google.com/photos/1.0/container/"
SPACES = b' xmlns:C="%b" xmlns:I="%bitem/" xmlns:cam="%b"' % (CONTAINER, CONTAINER, CAMERA)


def packet(attributes: bytes, content: bytes = b"", spaces: bytes = SPACES) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode()
        + b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
        + spaces
        + attributes
        + b' t:a="hdrgm:Version=&quot;1.0&quot; \xc3\xa4"'
        + b' xmlns:t="urn:t"><t:Kept>C:Directory</t:Kept>'
        + content
        + b'</rdf:Description></rdf:RDF></x:xmpmeta>\n   \n<?xpacket end="w"?>'
    )


CLEAN = packet(b"", spaces=b' xmlns:cam="%b"' % CAMERA)


def directory(*items: bytes) -> bytes:
    listed = b"".join(b'<rdf:li rdf:parseType="Resource"><C:Item I:Semantic="%b" I:Length="9"/></rdf:li>' % item for item in items)
    return b"<C:Directory><rdf:Seq>" + listed + b"</rdf:Seq></C:Directory>"


@pytest.mark.parametrize(
    ("told", "kinds"),
    [
        (packet(b' xmlns:hdrgm="%b" hdrgm:Version="1.0"' % HDR, directory(b"Primary", b"GainMap")), {"gain map"}),
        (packet(b" xmlns:hdrgm=\"%b\"\n  hdrgm:Version = '1.0'" % HDR), {"gain map"}),
        (packet(b"", directory(b"Primary", b"GainMap")), {"gain map"}),
        (packet(b"", b'<h:Version xmlns:h="%b">1.0</h:Version>' % HDR), {"gain map"}),
        (packet(b' cam:MotionPhoto="1" cam:MotionPhotoVersion="1" cam:MicroVideoOffset="9"'), {"video"}),
        (packet(b"", b"<cam:MicroVideo>1</cam:MicroVideo><cam:MicroVideoOffset>77</cam:MicroVideoOffset>"), {"video"}),
        (packet(b' cam:MotionPhoto="0"'), set()),
        (packet(b"", directory(b"Primary", b"MotionPhoto", b"GainMap", b"Depth")), {"video", "gain map", "picture"}),
        (packet(b"", directory(b"Primary")), set()),
        (packet(b"", b"<C:Directory/>"), set()),
    ],
)
def test_what_is_told_goes_and_all_else_stays_byte_for_byte(told: bytes, kinds: set[str]) -> None:
    for end in (b"", bytes(5)):  # some writers end packets with zeros
        assert without_container(told + end) == (CLEAN + end, kinds)


@pytest.mark.parametrize(
    "told",
    [
        b"",
        CLEAN,
        packet(b' hdrgm:Version="1.0"'),  # of no known namespace
        packet(b' xmlns:hdrgm="%b" hdrgm:Version="1.0"' % HDR)[:-40],
        b'<!DOCTYPE a [<!ENTITY b "c">]>' + packet(b' xmlns:hdrgm="%b" hdrgm:Version="1.0"' % HDR),
        packet(b' xmlns:hdrgm="%b" hdrgm:Version="\xff"' % HDR),
        (b'<a xmlns:h="%b" h:Version="1"/>' % HDR).decode().encode("utf-16"),
        b'<a xmlns:h="%b"><b xmlns:h="urn:other"/><c h:d=""/></a>' % HDR,  # a prefix of two meanings
    ],
)
def test_what_cannot_be_understood_stays_as_it_is(told: bytes) -> None:
    assert without_container(told) == (told, set())


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_packets_never_break_anything(data: st.DataObject) -> None:
    told = bytearray(packet(b' xmlns:hdrgm="%b" hdrgm:Version="1.0"' % HDR, directory(b"Primary", b"GainMap")))
    for _ in range(data.draw(st.integers(1, 5))):
        told[data.draw(st.integers(0, len(told) - 1))] = data.draw(st.integers(0, 255))
    assert len(without_container(bytes(told))[0]) <= len(told)
