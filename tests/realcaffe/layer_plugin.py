"""Our plugin for the stock Caffe."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .builds import CaffeBuild, stock
from .cache import digest, digest_of_files, entry, execute, prune

FACTS = "facts.json"


def plugin(caffe: CaffeBuild | None = None) -> Path:
    """Made by the installed package's command, as a user does, where the cache has none.

    The command's --json is beside it, in FACTS. `caffe` is one without our layer; None: stock().
    """
    # The rest of this package is of use before ours is installed.
    import sigmoid_ce.caffe

    caffe = caffe or stock()
    folder = sigmoid_ce.caffe.data_folder()
    sources = sorted(path for path in folder.rglob("*") if path.suffix in (".cpp", ".hpp", ".h"))
    builder = Path(sigmoid_ce.caffe.plugin.__file__).read_bytes()
    parts = (caffe.root.name, digest_of_files(folder, sources), builder, os.environ.get("CXX"))

    def make(root: Path) -> None:
        command: list[str | Path] = [sys.executable, "-m", "sigmoid_ce", "caffe", "plugin"]
        for include in caffe.includes:
            command += ["--include", include]
        command += ["--lib", caffe.library, "-o", root / "plugin.so", "--json", root / FACTS]
        execute(command, root / "log")

    root = entry(f"plugin-{digest(*parts)}", make)
    prune("plugin-*", keep=4)
    return root / "plugin.so"
