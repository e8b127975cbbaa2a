"""Puts the layer into a Caffe source tree and takes it out again.

What a tree is, is told from its files and never from a name. A file that the layer replaces must
be one of the versions whose digests are below, whatever its comments and line breaks: anything else
may be somebody's own loss, and is only replaced when asked to. What is there before is kept in the
tree, below `.sigmoid_ce`, where no build looks for sources.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sigmoid_ce.caffe import journal, proto
from sigmoid_ce.caffe.journal import FOLDER, Change, check_path, digest
from sigmoid_ce.caffe.paths import data_folder

LAYER = "sigmoid_cross_entropy_loss_layer"
HEADER = f"include/caffe/layers/{LAYER}.hpp"
SOURCE = f"src/caffe/layers/{LAYER}.cpp"
CUDA_SOURCE = f"src/caffe/layers/{LAYER}.cu"
STOCK_TEST = f"src/caffe/test/test_{LAYER}.cpp"
PROTO = "src/caffe/proto/caffe.proto"
_VERSION_HEADER = "include/caffe/util/sigmoid_ce.hpp"
_LOSS_HEADER = "include/caffe/layers/loss_layer.hpp"
_CLASS = "SigmoidCrossEntropyLossLayer"

RECORD = f"{FOLDER}/record.json"
_IGNORE = f"{FOLDER}/.gitignore"
_FORMAT = 1

# SHA-256 of the code without comments and white space (see code_digest), of the versions of the
# layer whose results ours has: what they compute.
_WITH = "with loss_param's ignore_label and normalization"
_WITHOUT = "the older layer, without loss_param"
KNOWN_CODE: dict[str, dict[str, str]] = {
    HEADER: {
        "b0154713218687ab869908f9d963777bbf349ad1634cb1ef156295c9a206ca1b": _WITH,
        "9ffe3cf2a694ba034aeb031493db69aed08a804ccd732bcd3fc9dbb8eb21b5c4": _WITHOUT,
        "13eb3ce6cb60d93131d1591364e2325a38316a6dc3b41e7ad1a88135eba29cb9": _WITHOUT,  # Intel
    },
    SOURCE: {
        "b04d5e8e00650b5b1427aa1b9d9b39c5bc558d7b47f37d2260f9089b8ca04cbd": _WITH,
        "b7759d2318c53b532ccb7aad3faad4fc29ae11e5f7f0e9825a7ac2585afc12dc": _WITHOUT,
        "9c0597c470625da5ac5e555664089d982f259dcb69db0dbd6bd315d9e810fe02": _WITHOUT,  # Intel
    },
    CUDA_SOURCE: {
        # Without the lines that clear what it had used as scratch.
        "d13c49c3383cb2ed280b40949b22c294891ed90dd82dfec2ae87f21d228e5149": _WITH,
        "1f99a4f15357f77b71142a99641274317e18f6d811684c1082b187bbaa84ee96": _WITH,
        "46fd615cf5232fb9530869eeaafe51968a37853ee0588b4d6013f1665771de6b": _WITHOUT,
    },
    # Only replaced where the overlay has a test of this name; what it tests holds for ours too.
    STOCK_TEST: {
        "48599a0c54e0210055cc649c36f6f35b62e7e9d8c68411344fa7e5a6e6ebcf99": _WITH,
        "38d9d4d523eef67062d5e1397c1912c6bca81b2c9c6e853bbfb11f23f6a1b686": _WITHOUT,
    },
}
_LAYER_FILES = (HEADER, SOURCE, CUDA_SOURCE)


class Outcome(NamedTuple):
    """What a verb found or did: lines to print, facts for JSON, and a diff of what would change."""

    lines: list[str]
    facts: dict[str, Any]
    diff: str = ""


class Problem(NamedTuple):
    """Why the layer cannot be put into a tree as it is. Some are for the user to decide."""

    reason: str
    forcible: bool = False


@dataclass
class Flavour:
    """What a tree is, by its files."""

    name: str
    version: str = ""
    layer: str = ""
    features: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# ---- the overlay ----


def overlay_files() -> dict[str, bytes]:
    """The files that go into a tree, by their path in it."""
    folder = data_folder()
    files = {}
    for top in ("include", "src"):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file() and path.suffix in (".hpp", ".cpp", ".cu", ".cuh"):
                files[path.relative_to(folder).as_posix()] = path.read_bytes()
    for needed in (HEADER, SOURCE, CUDA_SOURCE, _VERSION_HEADER):
        if needed not in files:
            raise RuntimeError(f"{folder} lacks {needed}; install sigmoid-ce again")
    return files


def _version(header: bytes) -> str:
    found = re.search(rb'#define SIGMOID_CE_VERSION "([^"]+)"', header)
    return found[1].decode("ascii", "replace") if found else "unknown"


# ---- reading code ----

_CODE_TOKEN = re.compile(
    r"""(?P<space>\s+|\\\r?\n|//[^\n]*|/\*.*?\*/)
      | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | \w+ | .""",
    re.VERBOSE | re.DOTALL,
)


def code_tokens(text: str) -> list[str]:
    """The words and signs of C++ code, without comments and white space."""
    return [m[0] for m in _CODE_TOKEN.finditer(text) if m.lastgroup != "space"]


def code_digest(content: bytes) -> str:
    return digest(" ".join(code_tokens(content.decode("latin-1"))).encode("latin-1"))


def _squeezed(content: bytes | None) -> str:
    """Code with single spaces between all tokens, to search in."""
    return " ".join(code_tokens((content or b"").decode("latin-1")))


# ---- a tree with its record ----


class Installed(NamedTuple):
    """The record of what was put into a tree."""

    version: str
    # By path: digest of ours; and digest and mode of the file that was there, or None.
    files: dict[str, tuple[str, tuple[str, int] | None]]
    folders: list[str]
    proto: proto.Edit | None


class Tree:
    """A Caffe source tree. Raises ValueError for what is none, or is not safe to change."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise ValueError(f"{path}: there is no such folder")
        if not path.is_dir():
            raise ValueError(f"{path}: expected the folder of a Caffe source tree, got a file")
        self.root = path.resolve()
        if not (self.root / PROTO).is_file():
            raise ValueError(
                f"{path}: no Caffe source tree: {PROTO} is not there"
                + (" (this is an overlay of ours)" if (path / _VERSION_HEADER).exists() else "")
            )
        self.record = self._read_record()

    def path(self, name: str) -> Path:
        return check_path(self.root, name)

    def current(self, name: str) -> bytes | None:
        """A file as it is; None where there is none."""
        path = self.path(name)
        return None if journal.state(path) is None else path.read_bytes()

    def mode(self, name: str) -> int:
        return stat.S_IMODE(self.path(name).stat().st_mode)

    def underlying(self, name: str) -> bytes | None:
        """A file as it is without what this tool put in."""
        content = self.current(name)
        if self.record is None:
            return content
        if name == PROTO and self.record.proto is not None and content is not None:
            try:
                return proto.remove(content.decode("latin-1"), self.record.proto).encode("latin-1")
            except ValueError:
                return content
        if name in self.record.files:
            ours, original = self.record.files[name]
            if original is not None:
                return self.original(name)
            return None if content is None or digest(content) == ours else content
        return content

    def original(self, name: str) -> bytes:
        """What was there before. Raises ValueError where the copy is not as it was kept."""
        assert self.record is not None
        kept = self.record.files[name][1]
        assert kept is not None
        content = self.current(_kept(name))
        if content is None or digest(content) != kept[0]:
            what = "is not there" if content is None else "was changed"
            raise ValueError(f"{self.root / _kept(name)}, the original of {name}, {what}")
        return content

    def changed(self) -> list[str]:
        """Files of ours that are not as they were put in, and hold what nobody has kept.

        A file that is gone does not count, nor does an original that was put back, as git does it.
        """
        if self.record is None:
            return []
        found = []
        for name, (ours, kept) in self.record.files.items():
            content = self.current(name)
            known = {ours} if kept is None else {ours, kept[0]}
            if content is not None and digest(content) not in known:
                found.append(name)
        return found

    def _read_record(self) -> Installed | None:
        content = self.current(RECORD)
        if content is None:
            return None
        try:
            data = json.loads(content)
            if data["format"] != _FORMAT:
                raise RuntimeError(
                    f"{self.root / RECORD} was written by another version of sigmoid_ce "
                    f"({data.get('version')}): use that one"
                )
            files = {}
            for name, entry in data["files"].items():
                self.path(name)
                original = entry["original"]
                kept = (
                    None
                    if original is None
                    else (str(original["sha256"]), int(original["mode"]) & 0o777)
                )
                files[name] = (str(entry["sha256"]), kept)
            for name in data["folders"]:
                self.path(name)
            edit = None if data["proto"] is None else proto.Edit(**data["proto"])
            return Installed(str(data["version"]), files, list(data["folders"]), edit)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.root / RECORD} cannot be read ({error})") from error


def _kept(name: str) -> str:
    # A suffix that no pattern for sources takes.
    return f"{FOLDER}/originals/{name}.original"


# ---- what a tree is ----


def inspect(tree: Tree) -> Flavour:
    """Tells what a tree is and what is against putting the layer into it."""
    flavour = Flavour(_name(tree), _caffe_version(tree))
    for check in (_check_layer, _check_classes, _check_proto, _check_uses, _check_standard):
        check(tree, flavour)
    return flavour


def _exists(tree: Tree, *names: str) -> bool:
    return any((tree.root / name).exists() for name in names)


def _name(tree: Tree) -> str:
    if re.search(r"template < typename \w+ , typename \w+ > class LossLayer", _loss_layer(tree)):
        return "NVIDIA Caffe 0.16 or later"
    if _exists(tree, "include/caffe/util/gpu_memory.hpp"):
        return "NVIDIA Caffe before 0.16"
    if _exists(tree, "include/caffe/mkldnn_base.hpp", "include/caffe/mkldnn_memory.hpp"):
        return "Intel Caffe"
    if _exists(tree, "src/caffe/layers/multibox_loss_layer.cpp"):
        return "a fork with the SSD layers"
    if not _exists(tree, "include/caffe/layers"):
        return "a Caffe of 2015 or earlier"
    return "BVLC Caffe or a fork near to it"


def _caffe_version(tree: Tree) -> str:
    for name, pattern in (
        ("CMakeLists.txt", r'CAFFE_TARGET_VERSION\s+"([\w.~-]+)"'),
        ("CMakeLists.txt", r'CAFFE_VERSION\s+"?([\w.~-]+)'),
    ):
        try:
            found = re.search(pattern, (tree.root / name).read_text("latin-1"))
        except OSError:
            continue
        if found:
            return found[1]
    return ""


def _loss_layer(tree: Tree) -> str:
    return _squeezed(tree.underlying(_LOSS_HEADER))


def _check_layer(tree: Tree, flavour: Flavour) -> None:
    """The files that are replaced: known ones, and of one version."""
    ours = overlay_files()
    present = {}
    for name in _LAYER_FILES:
        content = tree.underlying(name)
        if content is not None:
            present[name] = content
    if not present:
        where = "include/caffe/loss_layers.hpp"
        if _exists(tree, where) and _CLASS in (tree.root / where).read_text("latin-1"):
            reason = f"{where} declares the layer: a Caffe of 2015 or earlier"
        else:
            reason = "there is no layer SigmoidCrossEntropyLoss in this tree"
        flavour.problems.append(Problem(reason))
        flavour.layer = "none"
        return
    if HEADER not in present or SOURCE not in present:
        lacking = HEADER if HEADER not in present else SOURCE
        flavour.problems.append(Problem(f"{lacking} is not there, but the rest of the layer is"))
    if tree.record is None and all(present[name] == ours[name] for name in present):
        flavour.problems.append(
            Problem(
                "the layer is in the tree already, copied by hand or with the record of it lost: "
                "put the tree's own files back first (git checkout)"
            )
        )
        flavour.layer = "ours, without a record"
        return
    versions = {}
    test = tree.underlying(STOCK_TEST)
    if test is not None and STOCK_TEST in ours:
        present[STOCK_TEST] = test
    for name, content in present.items():
        known = KNOWN_CODE[name].get(code_digest(content))
        if known is None:
            flavour.problems.append(Problem(_unknown(tree, name, content), forcible=True))
        else:
            versions[name] = known
    source = _squeezed(present.get(SOURCE))
    flavour.layer = versions.get(SOURCE, "")
    if not flavour.layer:
        words = "normalization_" in source and "ignore_label_" in source
        flavour.layer = f"unknown, looks like {_WITH if words else _WITHOUT}"
    if _WITHOUT in flavour.layer:
        flavour.notes.append(
            "the tree's layer does not look at loss_param; ours does as it says (ignore_label, "
            "normalization, normalize)"
        )
    if "Forward_gpu" in _squeezed(present.get(HEADER)):
        flavour.features.append("the layer declares Forward_gpu")
    if "GetNormalizer" in _loss_layer(tree):
        flavour.features.append("LossLayer has GetNormalizer")
    if CUDA_SOURCE not in present:
        flavour.notes.append("the tree has no .cu of the layer; ours is added for CUDA builds")


def _unknown(tree: Tree, name: str, content: bytes) -> str:
    """Why a file is not replaced unasked: with what is in it that no known version has."""
    text = content.decode("latin-1")
    if _CLASS not in text:
        looks = f"has no {_CLASS}"
    elif "<<<<<<<" in text and ">>>>>>>" in text:
        looks = "has marks of a merge conflict"
    elif "sigmoid_ce" in text:
        looks = "looks like a version of ours, copied by hand"
    else:
        words = dict.fromkeys(re.findall(r"[A-Za-z_]\w*", " ".join(code_tokens(text))))
        strange = [word for word in words if word not in _STOCK_WORDS]
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        looks = "looks like the stock layer" + (
            f", but for {shown}" if strange else " with another order or other numbers"
        )
    against_git = _against_git(tree, name, content)
    what = f"{name} is no version that sigmoid_ce knows{against_git}"
    if name == STOCK_TEST:
        return f"{what}: ours would take the place of its tests"
    return f"{what}: it {looks}, and may compute another loss"


# What the known versions are written with.
_STOCK_WORDS = frozenset(
    """
    __global__ algorithm backpropagate Backward Backward_cpu Backward_gpu Blob blob bool bottom
    bottom_diff break caffe caffe_copy CAFFE_CUDA_NUM_THREADS CAFFE_GET_BLOCKS caffe_gpu_asum
    caffe_gpu_axpy caffe_gpu_scal caffe_gpu_set caffe_scal
    CAFFE_SIGMOID_CROSS_ENTROPY_LOSS_LAYER_HPP_ caffe_sub cannot case char CHECK_EQ class clear
    const continue count count_data counts cpu_data cpu_diff CPU_ONLY CUDA_KERNEL_LOOP default
    define diff Dtype else endif exp explicit FATAL for Forward Forward_cpu Forward_gpu get
    get_normalizer gpu_data h has_ignore_label has_ignore_label_ has_normalization has_normalize
    have hpp i if ifdef ifndef ignore_label ignore_label_ include inline inner_num_ input_data
    inputs INSTANTIATE_CLASS INSTANTIATE_LAYER_GPU_BACKWARD INSTANTIATE_LAYER_GPU_FUNCS int
    label Layer layer layer_param_ LayerParameter layers LayerSetUp LOG log loss loss_data
    loss_layer loss_param loss_weight LossLayer LossParameter_NormalizationMode
    LossParameter_NormalizationMode_BATCH_SIZE LossParameter_NormalizationMode_FULL
    LossParameter_NormalizationMode_Name LossParameter_NormalizationMode_NONE
    LossParameter_NormalizationMode_VALID math_functions max mode must mutable_cpu_data
    mutable_cpu_diff mutable_gpu_diff namespace new normalization normalization_
    normalization_mode normalize normalizer normalizer_ nthreads num outer_num_ param pb
    propagate_down protected proto public push_back REGISTER_LAYER_CLASS Reshape return same
    SetUp shape shared_ptr sigmoid_bottom_vec_ SIGMOID_CROSS_ENTROPY_LOSS
    sigmoid_cross_entropy_loss_layer sigmoid_layer sigmoid_layer_ sigmoid_output_
    sigmoid_output_data sigmoid_top_vec_ SigmoidCrossEntropyLoss
    SigmoidCrossEntropyLossForwardGPU SigmoidCrossEntropyLossIgnoreDiffGPU
    SigmoidCrossEntropyLossLayer SigmoidLayer static_cast std STUB_GPU STUB_GPU_BACKWARD switch
    target target_value template the this to top type typename Unknown util valid_count vector
    virtual void
    """.split()
)


def _against_git(tree: Tree, name: str, content: bytes) -> str:
    """Says how a file stands to the last commit, where the tree is in git."""
    # Plumbing only: `git status` would run what the tree's own configuration names.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment["GIT_NO_LAZY_FETCH"] = "1"
    command = ["git", "-C", str(tree.root), "cat-file", "blob", f"HEAD:./{name}"]
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode != 0:
        return ""
    same = done.stdout.replace(b"\r\n", b"\n") == content.replace(b"\r\n", b"\n")
    return " (as in git's HEAD)" if same else " (changed since git's HEAD)"


# What the layer takes from the tree, as code with a space between all tokens.
_NEEDED = (
    (_LOSS_HEADER, r"template < (typename|class) \w+ > class LossLayer : public Layer <"),
    (_LOSS_HEADER, r'"caffe/proto/caffe\.pb\.h"'),
    ("include/caffe/layer.hpp", r"template < (typename|class) \w+ > class Layer \{"),
    ("include/caffe/layer.hpp", r"void Forward_cpu \( const vector < Blob < \w+ > \* > & bottom ,"),
    ("include/caffe/layer.hpp", r"void Backward_cpu \( const vector < Blob < \w+ > \* > & top ,"),
    ("include/caffe/layer.hpp", r"int ExactNumBottomBlobs \( \) const"),
    ("include/caffe/layer.hpp", r"bool AllowForceBackward \( const int \w+ \) const"),
    ("include/caffe/layer_factory.hpp", r"define REGISTER_LAYER_CLASS \("),
    ("include/caffe/common.hpp", r"define INSTANTIATE_LAYER_GPU_FUNCS \("),
    ("include/caffe/util/device_alternate.hpp", r"define STUB_GPU \("),
)
# What every layer has to have; the layer has them.
_PURE = {"type", "Forward_cpu", "Backward_cpu", "LayerSetUp", "Reshape"}


def _check_classes(tree: Tree, flavour: Flavour) -> None:
    """The classes and macros that the layer is built on."""
    if flavour.name == "NVIDIA Caffe 0.16 or later":
        flavour.problems.append(
            Problem(
                "this Caffe's layers have two element types (NVIDIA 0.16 or later), ours has one"
            )
        )
        return
    code = {name: _squeezed(tree.underlying(name)) for name, _ in _NEEDED}
    for name in dict.fromkeys(name for name, _ in _NEEDED):
        lacking = [p for n, p in _NEEDED if n == name and not re.search(p, code[name])]
        if not code[name]:
            flavour.problems.append(Problem(f"{name}, which the layer needs, is not there"))
        elif lacking:
            shown = re.sub(r"\\(.)", r"\1", lacking[0].replace(r"\w+", "T"))
            flavour.problems.append(
                Problem(f"{name} is not as the layer needs it: it has no `{shown.rstrip(' (,{')}`")
            )
    for name in ("include/caffe/layer.hpp", _LOSS_HEADER):
        pure = re.findall(r"virtual [^;{}]*?(\w+) \([^;{}]*\)[^;{}()]*= 0 ;", code[name])
        more = sorted(set(pure) - _PURE)
        if more:
            flavour.problems.append(
                Problem(
                    f"{name}: layers of this Caffe have to have {', '.join(more)}; ours has not"
                )
            )


def _check_proto(tree: Tree, flavour: Flavour) -> None:
    text = (tree.underlying(PROTO) or b"").decode("latin-1")
    try:
        parsed = proto.parse(text)
    except ValueError as error:
        flavour.problems.append(Problem(f"{PROTO}: {error}"))
        return
    needed = {
        "LayerParameter": ("loss_param", "python_param"),
        "LossParameter": ("ignore_label", "normalize"),
        "PythonParameter": ("param_str",),
    }
    for message, names in needed.items():
        fields = parsed.messages.get(message, proto.Fields()).names
        for name in names:
            if name not in fields:
                flavour.problems.append(
                    Problem(f"{PROTO}: {message} has no {name}, which the layer reads")
                )
    layer = parsed.messages.get("LayerParameter", proto.Fields())
    theirs = parsed.messages.get(proto.MESSAGE, proto.Fields()).names
    if proto.FIELD not in layer.names:
        return
    if proto.FIRST_FIELDS - set(theirs):
        flavour.problems.append(
            Problem(
                f"{PROTO}: this Caffe has a {proto.FIELD} of its own, which is not what the layer "
                "reads under this name"
            )
        )
    elif missing := [name for name in proto.MESSAGE_FIELDS if name not in theirs]:
        flavour.notes.append(
            f"{proto.MESSAGE} in {PROTO}, written by hand, has no {', '.join(missing)}: these go "
            "into param_str"
        )


_CODE_SUFFIXES = (".hpp", ".h", ".cuh", ".cpp", ".cc", ".cu")
_CODE_FOLDERS = ("include", "src", "tools", "examples", "python", "matlab")


def _sources(tree: Tree) -> Iterator[tuple[str, str]]:
    for top in _CODE_FOLDERS:
        for folder, folders, files in os.walk(tree.root / top):
            folders.sort()
            for file in sorted(files):
                path = Path(folder, file)
                if file.endswith(_CODE_SUFFIXES) and path.is_file():
                    text = path.read_text("latin-1")
                    yield path.relative_to(tree.root).as_posix(), text


def _check_uses(tree: Tree, flavour: Flavour) -> None:
    """Code elsewhere that uses the class or registers the type."""
    own = {*overlay_files(), *(tree.record.files if tree.record else ()), *KNOWN_CODE, STOCK_TEST}
    for name, text in _sources(tree):
        if name in own or not (
            _CLASS in text or LAYER in text or "SigmoidCrossEntropyLoss" in text
        ):
            continue
        code = " ".join(code_tokens(text))
        if re.search(r"REGISTER_LAYER_(CLASS|CREATOR) \( SigmoidCrossEntropyLoss\b", code):
            flavour.problems.append(
                Problem(f"{name} registers the type SigmoidCrossEntropyLoss; so does our layer")
            )
        elif re.search(rf"public {_CLASS}\b", code):
            flavour.problems.append(
                Problem(
                    f"{name} derives a class from {_CLASS}, whose members are not those of ours",
                    forcible=True,
                )
            )
        elif re.search(rf"\b{_CLASS}\b", code):
            if name.startswith("src/caffe/test/"):
                flavour.notes.append(f"{name} tests the layer as well")
            else:
                flavour.problems.append(
                    Problem(
                        f"{name} uses the class {_CLASS}, whose members are not those of ours",
                        forcible=True,
                    )
                )
        elif re.search(rf'include "caffe/layers/{LAYER}.hpp"', code):
            flavour.notes.append(
                f"{name} includes the layer's header, which no longer includes sigmoid_layer.hpp"
            )


_OLD_STANDARD = re.compile(
    r"-std=(?:c|gnu)\+\+(?:98|03|0x|11)\b|\bCXX_STANDARD\s+(?:98|11)\b|CMAKE_CXX_STANDARD\s+(?:98|11)\b"
)


def _check_standard(tree: Tree, flavour: Flavour) -> None:
    names = ["Makefile.config", "Makefile", "CMakeLists.txt", "src/caffe/CMakeLists.txt"]
    names += sorted(p.relative_to(tree.root).as_posix() for p in tree.root.glob("cmake/*.cmake"))
    for name in names:
        try:
            text = (tree.root / name).read_text("latin-1")
        except OSError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found = _OLD_STANDARD.search(line.partition("#")[0])
            if found:
                flavour.problems.append(
                    Problem(
                        f"{name}:{number} asks for {found[0]}, the layer needs C++14",
                        forcible=True,
                    )
                )


# ---- the verbs ----


def status(path: Path) -> Outcome:
    """What a tree is, what of ours is in it, and what installing would do or why it would not."""
    with journal.locked(_folder(path)):
        recovered = _recover(path, dry_run=False)
        tree = Tree(path)
        flavour = inspect(tree)
        record = tree.record
        ours = _version(overlay_files()[_VERSION_HEADER])
        lines = [
            f"tree       {tree.root}",
            f"is         {_describe(flavour)}",
            f"its layer  {flavour.layer}",
        ]
        if recovered:
            lines.insert(0, recovered)
        changed = tree.changed()
        proto_changed = _proto_changed(tree)
        pending: list[str] = []
        if record is None:
            lines.append("ours       not installed")
        else:
            message = f", message with number {record.proto.number}" if record.proto else ""
            lines.append(f"ours       {record.version}{message}")
            lines += [f"changed    {name}, after it was installed" for name in changed]
            if proto_changed:
                lines.append(f"changed    {PROTO}: {proto_changed}")
        if not flavour.problems and not changed:
            plan = _install_plan(tree, want_proto=record is not None and record.proto is not None)
            pending = [change.path for change in plan.changes if not _is_own(change.path)]
        problems = flavour.problems
        if problems:
            lines += [
                f"refused    {p.reason}" + (" (--force: all the same)" if p.forcible else "")
                for p in problems
            ]
        elif changed:
            lines.append("refused    local changes; --force overwrites them")
        elif record is None:
            lines.append(f"possible   install of {ours}: {_count(tree, pending)}")
        elif pending:
            lines.append(f"possible   install of {ours} over {record.version}")
        else:
            lines.append("possible   uninstall; there is nothing to install")
        lines += [f"note       {note}" for note in flavour.notes]
        facts = {
            "tree": str(tree.root),
            "flavour": flavour.name,
            "caffe_version": flavour.version,
            "layer": flavour.layer,
            "features": flavour.features,
            "installed": None if record is None else record.version,
            "available": ours,
            "proto_number": record.proto.number if record is not None and record.proto else None,
            "changed": changed + ([PROTO] if proto_changed else []),
            "problems": [p._asdict() for p in problems],
            "notes": flavour.notes,
            "pending": pending,
            "recovered": recovered,
        }
        return Outcome(lines, facts)


def install(
    path: Path, *, want_proto: bool = False, force: bool = False, dry_run: bool = False
) -> Outcome:
    """Puts the layer into a tree, or a newer one in the place of an older one.

    With `want_proto` also its message into caffe.proto; one that is there stays. `force` overrides
    what the user may decide. Raises ValueError or RuntimeError, with every reason, where it is
    refused; then nothing is changed.
    """
    with journal.locked(_folder(path)):
        recovered = _recover(path, dry_run)
        tree = Tree(path)
        flavour = inspect(tree)
        problems = [*flavour.problems]
        problems += [
            Problem(f"{name} was changed since it was installed", forcible=True)
            for name in tree.changed()
        ]
        version = _version(overlay_files()[_VERSION_HEADER])
        plan = _install_plan(tree, want_proto) if _may(problems, force) else None
        if plan is not None:
            problems += plan.problems
        if plan is None or not _may(problems, force):
            raise ValueError(f"{tree.root} is left as it is: " + _reasons(problems, force))
        before = None if tree.record is None else tree.record.version
        shown = [c for c in plan.changes if not _is_own(c.path)]
        lines = [recovered] if recovered else []
        diff = _diff(tree, shown)
        if not plan.changes:
            lines.append(f"nothing to do: {version} is installed in {tree.root}")
        else:
            what = f"install {version}" + (f" over {before}" if before else "")
            count = _count(tree, plan.names)
            if not dry_run:
                journal.apply(tree.root, what, plan.changes)
            done = "would be" if dry_run else "is"
            lines.append(f"{version} {done} installed in {tree.root}: {count}")
            if plan.edit is not None:
                lines.append(
                    f"{proto.FIELD} {'would have' if dry_run else 'has'} number "
                    f"{plan.edit.number} in LayerParameter"
                )
            lines += [f"forced: {p.reason}" for p in problems]
            lines += [f"note: {note}" for note in flavour.notes]
            stale = "include/caffe/proto/caffe.pb.h"
            if plan.edit is not None and _exists(tree, stale):
                lines.append(f"note: {stale} is a generated file, and now out of date: remove it")
            if not dry_run:
                lines.append("to build: run cmake again, or make; new files are found by pattern")
        facts = {
            "tree": str(tree.root),
            "flavour": flavour.name,
            "layer": flavour.layer,
            "version": version,
            "replaced_version": before,
            "proto_number": None if plan.edit is None else plan.edit.number,
            "changes": [c.path for c in shown],
            "forced": [p.reason for p in problems],
            "notes": flavour.notes,
            "dry_run": dry_run,
            "recovered": recovered,
        }
        if dry_run:
            facts["diff"] = diff
        return Outcome(lines, facts, diff if dry_run else "")


def uninstall(path: Path, *, force: bool = False, dry_run: bool = False) -> Outcome:
    """Takes everything of ours out of a tree; every file is as it was, with its permissions.

    Raises ValueError or RuntimeError, with every reason, where it is refused; then nothing is
    changed.
    """
    with journal.locked(_folder(path)):
        recovered = _recover(path, dry_run)
        tree = Tree(path)
        lines = [recovered] if recovered else []
        facts: dict[str, Any] = {"tree": str(tree.root), "dry_run": dry_run, "recovered": recovered}
        if tree.record is None:
            content = tree.current(HEADER)
            if content is not None and content == overlay_files()[HEADER]:
                raise ValueError(
                    f"{tree.root} has the layer, but no record of the files from before: it was "
                    "copied by hand, or .sigmoid_ce was removed; put them back with git checkout"
                )
            lines.append(f"nothing to do: sigmoid_ce is not installed in {tree.root}")
            return Outcome(lines, {**facts, "version": None, "changes": []})
        problems = [
            Problem(
                f"{name} was changed since it was installed, which would be lost", forcible=True
            )
            for name in tree.changed()
        ]
        reason = _proto_changed(tree)
        if reason:
            problems.append(
                Problem(f"{PROTO}: {reason}; take out {proto.FIELD} and {proto.MESSAGE} by hand")
            )
        if not _may(problems, force):
            raise ValueError(f"{tree.root} is left as it is: " + _reasons(problems, force))
        changes, rmdir = _uninstall_plan(tree)
        shown = [c for c in changes if not _is_own(c.path)]
        diff = _diff(tree, shown)
        version = tree.record.version
        if not dry_run:
            journal.apply(tree.root, f"uninstall {version}", changes, rmdir)
        lines.append(
            f"{version} {'would be' if dry_run else 'is'} taken out of {tree.root}: "
            f"{len(shown)} files {'would be' if dry_run else 'are'} as before"
        )
        lines += [f"forced: {p.reason}" for p in problems]
        facts.update(version=version, changes=[c.path for c in shown])
        if dry_run:
            facts["diff"] = diff
        return Outcome(lines, facts, diff if dry_run else "")


def _folder(path: Path) -> Path:
    if not path.is_dir():
        what = "expected the folder of a Caffe source tree, got a file"
        raise ValueError(f"{path}: {what if path.exists() else 'there is no such folder'}")
    return path.resolve()


def _recover(path: Path, dry_run: bool) -> str | None:
    root = path.resolve()
    what = journal.unfinished(root)
    if what is not None and dry_run:
        raise RuntimeError(
            f"an earlier run on {root} was interrupted ({what}): the command without --dry-run, or "
            "status, mends it"
        )
    return journal.recover(root)


def _describe(flavour: Flavour) -> str:
    version = f", version {flavour.version}" if flavour.version else ""
    return f"{flavour.name}{version}" + "".join(f"; {f}" for f in flavour.features)


def _may(problems: Sequence[Problem], force: bool) -> bool:
    return all(p.forcible and force for p in problems)


def _reasons(problems: Sequence[Problem], force: bool) -> str:
    shown = [p for p in problems if not (force and p.forcible)]
    text = "; ".join(p.reason for p in shown)
    if all(p.forcible for p in shown):
        text += " (--force: go on all the same; the originals are kept)"
    return text


def _is_own(name: str) -> bool:
    return name.startswith(f"{FOLDER}/")


def _count(tree: Tree, names: Sequence[str]) -> str:
    replaced = [n for n in names if tree.underlying(n) is not None]
    return f"{len(replaced)} files replaced or edited, {len(names) - len(replaced)} added"


def _proto_changed(tree: Tree) -> str:
    """Why our lines cannot be taken out of caffe.proto, if so."""
    content = tree.current(PROTO)
    if tree.record is None or tree.record.proto is None or content is None:
        return ""
    try:
        proto.remove(content.decode("latin-1"), tree.record.proto)
    except ValueError as error:
        return str(error)
    return ""


class _Plan(NamedTuple):
    changes: list[Change]
    names: list[str]  # of the tree's files that are ours or edited, in the end
    edit: proto.Edit | None
    problems: list[Problem]


def _install_plan(tree: Tree, want_proto: bool) -> _Plan:
    """What to write so that a tree has this version's files; nothing where it has them."""
    overlay = overlay_files()
    record = tree.record
    problems: list[Problem] = []
    changes: list[Change] = []
    entries: dict[str, Any] = {}
    # Added files get what their neighbours have, without the right to run them.
    added_mode = tree.mode(_LOSS_HEADER) & 0o666
    folders = list(record.folders) if record else []

    for name, content in overlay.items():
        current = tree.current(name)
        original: tuple[str, int] | None = None
        mode = added_mode
        if record is not None and name in record.files:
            original = record.files[name][1]
        elif current is not None:
            original = (digest(current), tree.mode(name))
            changes.append(Change(_kept(name), current, added_mode))
            if name not in KNOWN_CODE:
                problems.append(
                    Problem(f"{name} is there, and was not put there by this tool", forcible=True)
                )
        if current is not None:
            mode = tree.mode(name)
        elif original is not None:
            mode = original[1]
        if current != content:
            changes.append(Change(name, content, mode))
        entries[name] = {
            "sha256": digest(content),
            "original": None if original is None else {"sha256": original[0], "mode": original[1]},
        }
        parent = tree.path(name).parent
        while not parent.exists():
            folder = parent.relative_to(tree.root).as_posix()
            if folder not in folders:
                folders.append(folder)
            parent = parent.parent

    # What an older version had put in and this one has not.
    for name, (_, kept) in (record.files if record else {}).items():
        if name not in overlay:
            changes += _restore(tree, name, kept)

    edit = record.proto if record else None
    if want_proto or edit is not None:
        content = tree.current(PROTO) or b""
        try:
            text = content.decode("latin-1")
            number = None
            if edit is not None:
                text, number = proto.remove(text, edit), edit.number
            text, edit = proto.add(text, number)
            if record is not None and record.proto == edit:
                pass  # where in the file the lines stand is the user's
            elif text.encode("latin-1") != content:
                changes.append(Change(PROTO, text.encode("latin-1"), tree.mode(PROTO)))
        except ValueError as error:
            problems.append(Problem(f"{PROTO}: {error}"))

    version = _version(overlay[_VERSION_HEADER])
    new = {
        "format": _FORMAT,
        "version": version,
        "files": entries,
        "folders": sorted(folders),
        "proto": None if edit is None else edit._asdict(),
    }
    for name, content in (
        (_IGNORE, b"*\n"),  # what is kept here is not to be committed
        (RECORD, (json.dumps(new, indent=1) + "\n").encode("ascii")),
    ):
        if tree.current(name) != content:
            changes.append(Change(name, content, added_mode))
    names = [*entries, *([PROTO] if edit is not None else [])]
    return _Plan(changes, names, edit, problems)


def _restore(tree: Tree, name: str, kept: tuple[str, int] | None) -> list[Change]:
    if kept is None:
        return [] if tree.current(name) is None else [Change(name, None, 0)]
    return [Change(name, tree.original(name), kept[1]), Change(_kept(name), None, 0)]


def _uninstall_plan(tree: Tree) -> tuple[list[Change], list[str]]:
    record = tree.record
    assert record is not None
    changes: list[Change] = []
    rmdir = set(record.folders)
    for name, (_, kept) in record.files.items():
        changes += _restore(tree, name, kept)
        if kept is not None:
            folder = Path(_kept(name)).parent
            while folder.as_posix() != FOLDER:
                rmdir.add(folder.as_posix())
                folder = folder.parent
    content = tree.current(PROTO)
    if record.proto is not None and content is not None:
        text = proto.remove(content.decode("latin-1"), record.proto)
        changes.append(Change(PROTO, text.encode("latin-1"), tree.mode(PROTO)))
    for name in (_IGNORE, RECORD):
        if tree.current(name) is not None:
            changes.append(Change(name, None, 0))
    return changes, sorted(rmdir)


def _diff(tree: Tree, changes: Sequence[Change]) -> str:
    """Unified, as `patch -p1` and `git apply` take it."""
    parts = []
    for change in changes:
        before = tree.current(change.path)
        if before == change.content:
            continue
        old, new = (_lines(content or b"") for content in (before, change.content))
        names = (
            "/dev/null" if before is None else f"a/{change.path}",
            "/dev/null" if change.content is None else f"b/{change.path}",
        )
        for line in difflib.unified_diff(old, new, *names):
            parts.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(parts)


def _lines(content: bytes) -> list[str]:
    """Split at line feeds only; str.splitlines() knows more."""
    return re.findall(r"[^\n]*\n|[^\n]+\Z", content.decode("utf-8", "replace"))
