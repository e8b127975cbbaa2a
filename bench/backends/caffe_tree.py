"""Our layer in the tree of a real Caffe."""

from __future__ import annotations

from typing import Any

from .caffe_net import RemoteCaffe, in_tree


class CaffeTree(RemoteCaffe):
    """The built-in layer's files replaced by ours, and Caffe linked anew."""

    worker = ("caffe_net", "TreeNet")

    def caffe(self) -> Any:
        return in_tree()
