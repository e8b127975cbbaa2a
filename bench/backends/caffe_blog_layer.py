"""The layer that pycaffe loads for caffe_python_blog. Nothing else imports it: it needs pycaffe."""

from __future__ import annotations

from typing import Any

import caffe

from .numpy_blog import BlogLayer


class BlogLossLayer(caffe.Layer):  # type: ignore[misc]  # pycaffe has no types
    """setup, reshape, forward and backward as the blog posts have them; param_str: pos_weight."""

    def setup(self, bottom: Any, top: Any) -> None:
        self._layer = BlogLayer(float(self.param_str) if self.param_str else None)

    def reshape(self, bottom: Any, top: Any) -> None:
        top[0].reshape(1)

    def forward(self, bottom: Any, top: Any) -> None:
        top[0].data[...] = self._layer.forward(bottom[0].data, bottom[1].data)

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        self._layer.backward(bottom[0].diff)
