"""The Python layer of the blog posts in a real Caffe."""

from __future__ import annotations

from ..plan import Case
from .caffe_net import PythonNet, RemoteCaffe
from .numpy_blog import blog_options


class CaffePythonBlog(RemoteCaffe):
    """NumPy's formulas between two blobs. One thread."""

    worker = ("caffe_python_blog", "BlogNet")


class BlogNet(PythonNet):
    """In the process with pycaffe."""

    python_layer = (f"{__package__}.caffe_blog_layer", "BlogLossLayer")

    def param_str(self, case: Case) -> str:
        factor = blog_options(case)
        return "" if factor is None else str(factor)
