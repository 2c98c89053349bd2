"""Upscale a photo and put nearest neighbour, bicubic and DRCT side by side: ``python examples/demo.py PHOTO FOLDER``."""

import sys
from pathlib import Path

import drct
from drct.imaging import read, resize, side_by_side, write


def main(photo: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    result, sheet = Path(folder, f"{Path(photo).stem}_x4.png"), Path(folder, "side_by_side.png")
    upscaler = drct.Upscaler("drct-light-x4")
    upscaler.file(photo, result)

    small = read(photo).pixels
    panels = [small.repeat(4, 0).repeat(4, 1), resize(small, scale=4), read(result).pixels]
    write(sheet, side_by_side(panels, ["nearest", "bicubic", "drct-light-x4"]))
    print(f"result:        {result.resolve()}")
    print(f"side by side:  {sheet.resolve()}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/demo.py PHOTO FOLDER")
    try:
        main(*sys.argv[1:])
    except drct.Error as error:
        sys.exit(f"error: {error}")
