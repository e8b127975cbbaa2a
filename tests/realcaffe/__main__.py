"""The real Caffes by hand: see USAGE."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from . import (
    BuildError,
    CaffeBuild,
    Missing,
    bvlc_source,
    cache_root,
    fork_source,
    gtest_alone,
    gtest_program,
    run_tests,
    stock,
    with_overlay,
)
from .cuda import prepare

USAGE = """\
python -m tests.realcaffe COMMAND

  path             the cache's folder
  source           get BVLC Caffe 1.0 and the older fork, and say where they are
  stock            build BVLC Caffe 1.0
  overlay FOLDER   link an overlay's files into it; runs its test of the layer
  fork [FOLDER]    the older fork's test of the layer, with an overlay if given
  cuda FOLDER      build BVLC Caffe with GPU code and our layer, and fill the folder with what a
                   machine with a GPU needs to run it: sh FOLDER/run.sh

To use a build:  export PYTHONPATH=... PATH=...  as printed.
"""


def show(caffe: CaffeBuild) -> None:
    print(f"library  {caffe.library}")
    print(f"command  {caffe.binary}")
    print(f"pycaffe  {caffe.pycaffe or caffe.no_pycaffe}")
    print("compile  " + " ".join(["-DCPU_ONLY", *(f"-I{folder}" for folder in caffe.includes)]))
    print(f"export   PATH={caffe.binary.parent}:$PATH PYTHONPATH={caffe.pycaffe or ''}")
    print(f"layer    {run_tests(gtest_program(caffe))} tests passed")


def main(command: str = "", folder: str = "", *more: str) -> int:
    start = time.monotonic()
    overlay = Path(folder) if folder else None
    if command == "path":
        print(cache_root())
    elif command == "source":
        print(bvlc_source(), fork_source(), sep="\n")
    elif command == "stock":
        show(stock())
    elif command == "overlay" and overlay:
        show(with_overlay(overlay))
    elif command == "fork":
        program = gtest_alone(fork_source(), overlay)
        print(f"program  {program}\nlayer    {run_tests(program)} tests passed")
    elif command == "cuda" and folder:
        print(prepare(Path(folder), Path(__file__).resolve().parents[2] / "caffe"))
    else:
        print(USAGE)
        return 2
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except Missing as reason:
        sys.exit(f"{reason} is missing")
    except (BuildError, ValueError) as error:
        sys.exit(str(error))
