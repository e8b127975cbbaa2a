"""Where the sources for Caffe are."""

from __future__ import annotations

from pathlib import Path


def data_folder() -> Path:
    """The folder with `include` and `src` for a Caffe tree, `plugin` and `pythonpath`."""
    installed = Path(__file__).parents[1] / "data" / "caffe"
    if installed.is_dir():
        return installed
    return Path(__file__).resolve().parents[3] / "caffe"  # in a clone
