"""The commands `sigmoid-ce caffe ...`."""

from __future__ import annotations

from pathlib import Path

import click

from sigmoid_ce.caffe import plugin as plugins
from sigmoid_ce.caffe import tree as trees
from sigmoid_ce.caffe.paths import data_folder
from sigmoid_ce.console import failures, json_option, print_result
from sigmoid_ce.stream import refuse_same

_TREE = click.argument("tree", type=click.Path(path_type=Path))
_FORCE = click.option(
    "--force",
    is_flag=True,
    help="Go on where it is for the user to decide: files of unknown or changed content.",
)
_DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Print a diff of what would change, and change nothing."
)


@click.group(subcommand_metavar="COMMAND [ARGS]...")
def caffe() -> None:
    """The layer for Caffe: source trees, plugins, Python layers."""


def _print(outcome: trees.Outcome, json_out: str | None) -> None:
    lines = outcome.lines
    if outcome.diff:
        lines = [*lines, "", outcome.diff.rstrip("\n")]
    print_result(lines, outcome.facts, json_out)


@caffe.command(short_help="Say what a source tree is, and has of ours.")
@_TREE
@json_option
def status(tree: Path, json_out: str | None) -> None:
    """Say what the Caffe source tree TREE is, and what of ours is in it.

    Says also what install would do, or why it would refuse. Where an earlier run was interrupted,
    completes it.
    """
    with failures():
        _print(trees.status(tree), json_out)


@caffe.command(short_help="Put the layer into a source tree.")
@_TREE
@click.option(
    "want_proto",
    "--proto",
    is_flag=True,
    help="Add the message sigmoid_cross_entropy_loss_param to caffe.proto.",
)
@_DRY_RUN
@_FORCE
@json_option
def install(tree: Path, want_proto: bool, dry_run: bool, force: bool, json_out: str | None) -> None:
    """Put the layer into the Caffe source tree TREE, or a newer one over an older.

    Replaces the files of the built-in layer, which are kept in TREE/.sigmoid_ce, and adds the
    kernels. All is done or nothing, also when the command is killed and run again.

    \b
    Example:
      sigmoid-ce caffe install ~/caffe --dry-run
    """
    with failures():
        _print(trees.install(tree, want_proto=want_proto, force=force, dry_run=dry_run), json_out)


@caffe.command(short_help="Take the layer out of a source tree.")
@_TREE
@_DRY_RUN
@_FORCE
@json_option
def uninstall(tree: Path, dry_run: bool, force: bool, json_out: str | None) -> None:
    """Take everything of ours out of the Caffe source tree TREE.

    Every file is as it was before the first install, with its permissions; in caffe.proto only our
    lines are removed.
    """
    with failures():
        _print(trees.uninstall(tree, force=force, dry_run=dry_run), json_out)


@caffe.command(short_help="Print the folder of the Python layers' modules.")
@json_option
def pythonpath(json_out: str | None) -> None:
    """Print the folder of the Python layers' modules, to put on PYTHONPATH.

    \b
    Example:
      layers="$(sigmoid-ce caffe pythonpath)"
      export PYTHONPATH="$layers${PYTHONPATH:+:$PYTHONPATH}"
      caffe train -solver solver.prototxt
    """
    with failures():
        folder = data_folder() / "pythonpath"
        if not folder.is_dir():
            raise RuntimeError(f"{folder} is not there; install sigmoid-ce again")
        print_result([str(folder)], {"pythonpath": str(folder)}, json_out)


@caffe.command(short_help="Build the layer for a Caffe that is built already.")
@click.option(
    "--include",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    multiple=True,
    required=True,
    metavar="DIR",
    help="Folder for #include; give it once for each: Caffe's include, and the folder of the "
    "generated caffe/proto/caffe.pb.h (build/include, or .build_release/src).",
)
@click.option(
    "--lib",
    "library",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    required=True,
    metavar="LIB",
    help="libcaffe.so, or the _caffe.so that has Caffe in it.",
)
@click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="The plugin to write.",
)
@click.option(
    "--cpu-only/--gpu",
    default=None,
    help="How Caffe was built; found out from LIB, and refused where it differs.",
)
@click.option("--compiler", metavar="CXX", help="GCC's C++ compiler; default: CXX, else g++.")
@click.option(
    "--flag",
    "flags",
    multiple=True,
    metavar="FLAG",
    help="One more for the compiler, such as --flag=-std=c++17.",
)
@click.option(
    "--nvcc",
    metavar="NVCC",
    help="CUDA's compiler, for a Caffe with GPU code; default: NVCC, else bin/nvcc in CUDA_HOME, "
    "else nvcc on the PATH.",
)
@click.option(
    "--arch",
    "architectures",
    multiple=True,
    metavar="NUMBER",
    help="A GPU architecture to compile for, such as 90; give it once for each. Default: this "
    "machine's, else nvcc's own default, which drivers compile for newer ones.",
)
@json_option
def plugin(
    include: tuple[Path, ...],
    library: Path,
    output: Path,
    cpu_only: bool | None,
    compiler: str | None,
    flags: tuple[str, ...],
    nvcc: str | None,
    architectures: tuple[str, ...],
    json_out: str | None,
) -> None:
    """Build the layer as a plugin for a Caffe that is built already.

    Takes half a minute. Load it with sigmoid_ce.caffe.load_plugin(FILE) beside pycaffe, or with
    LD_PRELOAD=FILE before the command caffe. The built-in layer is replaced, unless
    SIGMOID_CE_PLUGIN_TYPE=NAME in the environment says to add another type.

    \b
    Example:
      sigmoid-ce caffe plugin -o plugin.so --lib ~/caffe/build/lib/libcaffe.so \\
          --include ~/caffe/include --include ~/caffe/build/include
      LD_PRELOAD=$PWD/plugin.so caffe train -solver solver.prototxt
    """
    with failures():
        if json_out not in (None, "-"):
            refuse_same(Path(str(json_out)), "--json", {"the plugin": output, "--lib": library})
        made = plugins.build_plugin(
            include,
            library,
            output,
            cpu_only=cpu_only,
            compiler=compiler,
            flags=flags,
            nvcc=nvcc,
            architectures=architectures,
        )
        lines = [
            f"plugin  {made.path}",
            f"Caffe   {'CPU_ONLY' if made.cpu_only else 'with GPU code'}",
        ]
        facts = {"path": str(made.path), "cpu_only": made.cpu_only}
        print_result(lines, facts, json_out)
