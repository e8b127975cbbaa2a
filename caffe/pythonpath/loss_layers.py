"""The plain Python layer under the module name that prototxts know.

    python_param { module: "loss_layers"  layer: "CustomSigmoidCrossEntropyLossLayer" }

Everything is in sigmoid_ce.caffe.layers. This folder belongs on PYTHONPATH for Caffe only.
"""

from sigmoid_ce.caffe.layers import CustomSigmoidCrossEntropyLossLayer

__all__ = ["CustomSigmoidCrossEntropyLossLayer"]
