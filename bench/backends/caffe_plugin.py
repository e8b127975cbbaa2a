"""Our layer as a plugin of a real Caffe."""

from __future__ import annotations

from collections.abc import Mapping

from .caffe_net import RemoteCaffe, plugin_environment


class CaffePlugin(RemoteCaffe):
    """The stock Caffe, with a layer type that a shared library adds."""

    worker = ("caffe_net", "PluginNet")

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), **plugin_environment()}
