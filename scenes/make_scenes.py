"""Renders the three scenes that ship with compress3g: pictures, cameras, alpha and depth.

    pip install 'mitsuba>=3.9' scikit-image pillow
    python scenes/make_scenes.py [lantern spire orchard] [--size 128] [--spp 256] [--out scenes]

Everything is procedural and path traced. Files follow the NeRF-synthetic layout: straight-alpha
sRGB PNG, camera-to-world matrices with OpenGL axes (x right, y up, -z forward), z up in the world.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from generator.dataset import SCENES, write_scene
from generator.tracing import initialise


def main() -> None:
    """Renders the scenes named on the command line, all of them by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(SCENES)}")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--spp", type=int, default=256, help="light paths per pixel")
    parser.add_argument("--seed", type=int, default=0, help="of the light paths")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--views", type=int, nargs="*", help="render only these, as a preview")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(SCENES)
    if unknown:
        parser.error(f"no such scene: {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    initialise(arguments.threads)
    for name in arguments.names or SCENES:
        print(
            write_scene(
                name,
                arguments.out / name,
                size=arguments.size,
                spp=arguments.spp,
                seed=arguments.seed,
                only=arguments.views,
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
