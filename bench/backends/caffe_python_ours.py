"""Our Python layer in a real Caffe."""

from __future__ import annotations

import json
from typing import Any

from ..plan import IGNORED_TARGET, POS_WEIGHT, Case, Option
from .caffe_net import PythonNet, RemoteCaffe


class CaffePythonOurs(RemoteCaffe):
    """sigmoid_ce.caffe.layers: our kernels on the blobs, called from Python."""

    worker = ("caffe_python_ours", "OursNet")


class OursNet(PythonNet):
    """In the process with pycaffe."""

    python_layer = ("sigmoid_ce.caffe.layers", "CustomSigmoidCrossEntropyLossLayer")
    ours = True

    def param_str(self, case: Case) -> str:
        options: dict[str, Any] = {"normalization": "full"}
        if case.option is Option.POS_WEIGHT:
            options["pos_weight"] = POS_WEIGHT
        elif case.option is Option.IGNORE:
            options = {"normalization": "valid", "ignore_label": IGNORED_TARGET}
        return json.dumps(options)
