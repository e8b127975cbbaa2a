"""The class-weighted Python layer under the module name that prototxts know.

    python_param {
      module: "SigmoidCrossEntropyWeightLossLayer"
      layer: "SigmoidCrossEntropyWeightLossLayer"
      param_str: '{"cls_weight": 100}'
    }

Everything is in sigmoid_ce.caffe.layers. This folder belongs on PYTHONPATH for Caffe only.
"""

from sigmoid_ce.caffe.layers import SigmoidCrossEntropyWeightLossLayer

__all__ = ["SigmoidCrossEntropyWeightLossLayer"]
