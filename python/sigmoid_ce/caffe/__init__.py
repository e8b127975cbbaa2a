"""For users of Caffe: source trees, plugins for a built Caffe, and Python layers.

The command is `sigmoid-ce caffe --help`; docs/dropin.md has the whole story.
"""

from sigmoid_ce.caffe.paths import data_folder
from sigmoid_ce.caffe.plugin import Plugin, build_plugin, load_plugin

__all__ = ["Plugin", "build_plugin", "data_folder", "load_plugin"]
