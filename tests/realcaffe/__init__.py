"""A real Caffe for the tests: its sources, builds of it, and ours linked into them.

    stock()                     BVLC Caffe 1.0, built once and kept in the cache
    plugin()                    our plugin for it, made by the installed package's command
    with_overlay(folder)        the same with an overlay's files, in seconds
    build(tree, overlay)        a whole build, for what is marked long
    gtest_program(build, tests)  C++ tests linked with a build
    gtest_alone(tree, overlay)   C++ tests with the few sources that the layer needs, on the CPU or
                                 on an emulated GPU
    bvlc_source(), fork_source()  the trees, not to be written to; copy_tree() makes one's own

Missing is raised where the machine lacks something (a test skips, or fails where CI=true), and
BuildError where a command fails. `python -m tests.realcaffe` does the same by hand.
"""

from .builds import (
    CPU_TESTS,
    CUDA_LIBRARIES,
    GPU_TESTS,
    LAYER,
    LAYER_TEST,
    CaffeBuild,
    build,
    copy_tree,
    generated_headers,
    gtest_alone,
    gtest_program,
    layer_test,
    run_tests,
    stock,
    with_overlay,
)
from .cache import BuildError, Missing, cache_root
from .fetch import bvlc_source, fork_source
from .layer_plugin import plugin

__all__ = [
    "CPU_TESTS",
    "CUDA_LIBRARIES",
    "GPU_TESTS",
    "LAYER",
    "LAYER_TEST",
    "BuildError",
    "CaffeBuild",
    "Missing",
    "build",
    "bvlc_source",
    "cache_root",
    "copy_tree",
    "fork_source",
    "generated_headers",
    "gtest_alone",
    "gtest_program",
    "layer_test",
    "plugin",
    "run_tests",
    "stock",
    "with_overlay",
]
