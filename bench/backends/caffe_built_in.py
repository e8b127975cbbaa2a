"""The built-in layer of a real Caffe."""

from __future__ import annotations

from .caffe_net import RemoteCaffe


class CaffeBuiltIn(RemoteCaffe):
    """SigmoidCrossEntropyLoss of BVLC Caffe 1.0, as published. One thread."""

    worker = ("caffe_net", "CaffeNet")
