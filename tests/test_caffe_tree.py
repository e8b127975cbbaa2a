"""The layer put into Caffe source trees and taken out: real trees, and small ones for odd cases."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from sigmoid_ce.caffe import journal, proto
from sigmoid_ce.caffe import tree as trees
from sigmoid_ce.caffe.cli import caffe
from sigmoid_ce.caffe.tree import CUDA_SOURCE, HEADER, PROTO, SOURCE, STOCK_TEST
from tests.conftest import ROOT, missing, tool
from tests.realcaffe import Missing, bvlc_source, fork_source

LOSS_HEADER = "include/caffe/layers/loss_layer.hpp"

# ---- trees ----

# The least that passes for a Caffe: declarations that the layer needs, and a layer to replace.
_TINY = {
    "CMakeLists.txt": 'set(CAFFE_TARGET_VERSION "1.0.0")\n# no -std=c++11 here\n',
    "Makefile": "CXXFLAGS += -O2 # not -std=c++11\n",
    "include/caffe/common.hpp": "#define INSTANTIATE_LAYER_GPU_FUNCS(name) int name\n",
    "include/caffe/util/device_alternate.hpp": "#define STUB_GPU(name) int name\n",
    "include/caffe/layer_factory.hpp": "#define REGISTER_LAYER_CLASS(type) int type\n",
    "include/caffe/layer.hpp": """
        template <typename Dtype>
        class Layer {
          virtual int ExactNumBottomBlobs() const { return -1; }
          virtual bool AllowForceBackward(const int i) const { return true; }
          virtual void Forward_cpu(const vector<Blob<Dtype>*>& bottom, int top) = 0;
          virtual void Backward_cpu(const vector<Blob<Dtype>*>& top, int down) = 0;
        };
    """,
    LOSS_HEADER: """
        #include "caffe/proto/caffe.pb.h"
        template <typename Dtype> class LossLayer : public Layer<Dtype> {};
    """,
    HEADER: "template <typename Dtype> class SigmoidCrossEntropyLossLayer {};\n",
    SOURCE: "// The loss.\nREGISTER_LAYER_CLASS(SigmoidCrossEntropyLoss);\n",
    CUDA_SOURCE: "INSTANTIATE_LAYER_GPU_FUNCS(SigmoidCrossEntropyLossLayer);\n",
    STOCK_TEST: "class SigmoidCrossEntropyLossLayerTest {};\n",
    PROTO: """syntax = "proto2";
package caffe;
message LossParameter { optional int32 ignore_label = 1; optional bool normalize = 2; }
message PythonParameter { optional string param_str = 3; }
// LayerParameter next available layer-specific ID: 7311
message LayerParameter {
  optional LossParameter loss_param = 101;
  optional PythonParameter python_param = 130;
}
message V1LayerParameter { optional LossParameter loss_param = 1; }
""",
}
_VERSION = '#define SIGMOID_CE_VERSION "{}"\n'
_TINY_OVERLAY = {
    "include/caffe/util/sigmoid_ce.hpp": _VERSION,
    "src/caffe/util/sigmoid_ce.cpp": "// kernels\n",
    "src/caffe/new_folder/sigmoid_ce_more.cpp": "// more\n",
    HEADER: "// our header {}\n",
    SOURCE: "// our source {}\n",
    CUDA_SOURCE: "// our CUDA source\n",
    "src/caffe/test/test_sigmoid_ce_loss_layer.cpp": "// our test\n",
}


def write(folder: Path, files: dict[str, str], version: str = "") -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{}", version) if version else text)
    return folder


def use_tiny(patch: pytest.MonkeyPatch, folder: Path, version: str = "1.0") -> Path:
    """A tiny tree whose layer counts as known, and a tiny overlay in place of the real one."""
    overlay = write(folder / f"overlay-{version}", _TINY_OVERLAY, version)
    patch.setattr(trees, "data_folder", lambda: overlay)
    for name in (HEADER, SOURCE, CUDA_SOURCE):
        known = {trees.code_digest(_TINY[name].encode()): "with loss_param"}
        patch.setitem(trees.KNOWN_CODE, name, known)
    return write(folder / "tree", _TINY)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return use_tiny(monkeypatch, tmp_path)


@pytest.fixture(params=["bvlc", "fork"])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What of a real tree the tool looks at or a build finds sources in."""
    try:
        source = bvlc_source() if request.param == "bvlc" else fork_source()
    except Missing as lacking:
        missing(str(lacking))
    for name in ("include", "src", "cmake", "tools"):
        shutil.copytree(source / name, tmp_path / "caffe" / name, symlinks=True)
    for name in ("CMakeLists.txt", "Makefile"):
        shutil.copy2(source / name, tmp_path / "caffe")
    tree = tmp_path / "caffe"
    if any(p.forcible for p in trees.inspect(trees.Tree(tree)).problems):
        missing("a Caffe with an unchanged layer at SIGMOID_CE_CAFFE_SRC")
    return tree


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """Everything below a folder: permissions and content. Times are to differ, for `make`."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content: bytes | str = ""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[path.relative_to(folder).as_posix()] = (stat.S_IMODE(status.st_mode), content)
    return found


def edit(tree: Path, name: str, old: str, new: str) -> None:
    path = tree / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# ---- real trees ----


def test_real_tree_is_recognised(real: Path) -> None:
    facts = trees.status(real).facts
    assert facts["problems"] == []
    assert facts["installed"] is None
    if (real / "src/caffe/layers/multibox_loss_layer.cpp").exists():
        assert "SSD" in facts["flavour"]
        assert facts["layer"] == "the older layer, without loss_param"
        assert any("does not look at loss_param" in note for note in facts["notes"])
    else:
        assert "BVLC" in facts["flavour"]
        assert facts["layer"] == "with loss_param's ignore_label and normalization"
    assert facts["caffe_version"] == "1.0.0"


def test_words_of_the_known_versions_are_known(real: Path) -> None:
    for name in (HEADER, SOURCE, CUDA_SOURCE):
        code = " ".join(trees.code_tokens((real / name).read_text()))
        assert set(re.findall(r"[A-Za-z_]\w*", code)) <= trees._STOCK_WORDS


@pytest.mark.parametrize("want_proto", [False, True])
def test_uninstall_restores_every_byte_and_permission(real: Path, want_proto: bool) -> None:
    (real / HEADER).chmod(0o600)
    (real / SOURCE).chmod(0o755)
    before = snapshot(real)
    trees.install(real, want_proto=want_proto)
    after = snapshot(real)
    overlay = trees.overlay_files()
    changed = {n for n in after if before.get(n) != after[n] and not n.startswith(".sigmoid_ce")}
    assert changed == set(overlay) | ({PROTO} if want_proto else set())
    assert all(after[name][1] == content for name, content in overlay.items())
    assert after[HEADER][0] == 0o600
    assert after[SOURCE][0] == 0o755
    assert before.keys() <= after.keys()
    # Whatever a Makefile's find or CMake's glob takes for a source, there is none in our folder.
    kept = [p for p in (real / ".sigmoid_ce").rglob("*") if p.is_file()]
    assert {p.suffix for p in kept} <= {".original", ".json", ""}
    trees.uninstall(real)
    assert snapshot(real) == before


def test_second_install_has_nothing_to_do(real: Path) -> None:
    trees.install(real, want_proto=True)
    before = snapshot(real)
    for again in (False, True):
        outcome = trees.install(real, want_proto=again)
        assert outcome.facts["changes"] == []
        assert "nothing to do" in outcome.lines[0]
    assert snapshot(real) == before
    facts = trees.status(real).facts
    assert facts["installed"] == facts["available"]
    assert facts["pending"] == facts["problems"] == facts["changed"] == []


def test_dry_run_is_a_patch_and_changes_nothing(real: Path, tmp_path: Path) -> None:
    git = tool("git")
    if git is None:
        missing("git")
    assert git is not None
    copy = shutil.copytree(real, tmp_path / "copy", symlinks=True)
    before = snapshot(real)
    diff = trees.install(real, want_proto=True, dry_run=True).diff
    assert snapshot(real) == before
    subprocess.run([git, "apply", "-"], cwd=copy, input=diff.encode(), check=True)
    trees.install(real, want_proto=True)
    installed = snapshot(real)
    by_patch = snapshot(copy)
    assert {n: c for n, (_, c) in installed.items() if not n.startswith(".sigmoid_ce")} == {
        n: c for n, (_, c) in by_patch.items()
    }

    diff = trees.uninstall(real, dry_run=True).diff
    assert snapshot(real) == installed
    subprocess.run([git, "apply", "-"], cwd=copy, input=diff.encode(), check=True)
    assert {n: c for n, (_, c) in snapshot(copy).items()} == {n: c for n, (_, c) in before.items()}


def _descriptor(path: Path, out: Path) -> dict[str, dict[str, tuple[int, int, str]]]:
    """Messages by full name with their fields' numbers, labels and types, as protoc reads them."""
    protoc = tool("protoc")
    if protoc is None:
        missing("protoc (Debian's package protobuf-compiler)")
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    command = [str(protoc), f"--proto_path={path.parent}", f"--descriptor_set_out={out}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    found: dict[str, dict[str, tuple[int, int, str]]] = {}

    def collect(message: object, prefix: str) -> None:
        name = f"{prefix}{message.name}"  # type: ignore[attr-defined]
        fields = message.field  # type: ignore[attr-defined]
        found[name] = {f.name: (f.number, f.label, f.type_name or str(f.type)) for f in fields}
        for nested in message.nested_type:  # type: ignore[attr-defined]
            collect(nested, f"{name}.")

    for message in files.file[0].message_type:
        collect(message, "")
    return found


@pytest.mark.parametrize("crlf", [False, True])
def test_protoc_reads_the_new_message_and_all_the_others(
    real: Path, tmp_path: Path, crlf: bool
) -> None:
    path = real / PROTO
    if crlf:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    original = path.read_bytes()
    before = _descriptor(path, tmp_path / "before")
    number = trees.install(real, want_proto=True).facts["proto_number"]
    after = _descriptor(path, tmp_path / "after")
    assert (b"\n" in path.read_bytes().replace(b"\r\n", b"")) != crlf
    message = after.pop(proto.MESSAGE)
    repeated = {"pos_weight", "weight"}
    assert {name: field[:2] for name, field in message.items()} == {
        name: (field, 3 if name in repeated else 1) for name, field in proto.MESSAGE_FIELDS.items()
    }
    field = after["LayerParameter"].pop(proto.FIELD)
    assert field == (number, 1, f".caffe.{proto.MESSAGE}")
    assert number not in {f[0] for f in before["LayerParameter"].values()}
    assert after == before
    # What our own reader says of the file is what protoc says.
    parsed = proto.parse(original.decode("latin-1")).messages
    for name, fields in parsed.items():
        assert fields.names == {field: entry[0] for field, entry in before[name].items()}
    trees.uninstall(real)
    assert path.read_bytes() == original


# ---- caffe.proto ----


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        ("optional int32 a = 5; repeated X b = 6 [default = 3];", {5, 6}),
        ("// optional int32 a = 5;\n/* int32 b = 6; */ optional int32 c = 0x10;", {16}),
        ('optional string a = 1 [default = "} = 9; // "]; optional int32 b = 010;', {1, 8}),
        ("oneof kind { int32 a = 3; X b = 4; }", {3, 4}),
        ("optional group G = 5 { optional int32 inner = 6; } optional int32 b = 7;", {5, 7}),
        ("extensions 10 to 12; extensions 20;", {10, 11, 12, 20}),
        ('reserved 2, 15, 9 to 11; reserved "x", "y";', {2, 15, 9, 10, 11}),
        ("message Inner { optional int32 a = 3; enum E { Z = 4; } } enum F { Y = 5; }", set()),
        ("map<string, int32> m = 7; option deprecated = true;", {7}),
        ("extend Other { optional int32 a = 8; } optional .caffe.X message = 9;", {9}),
    ],
)
def test_taken_numbers(body: str, taken: set[int]) -> None:
    fields = proto.parse(f"message M {{ {body} }}").messages["M"]
    assert {n for n in range(1, 100) if fields.taken(n)} == taken


def test_extension_elsewhere_takes_its_number() -> None:
    text = "message M { extensions 5 to max; } extend caffe.M { optional int32 x = 4; }"
    fields = proto.parse(text).messages["M"]
    assert [n for n in range(1, 8) if fields.taken(n)] == [4, 5, 6, 7]
    assert fields.taken((1 << 29) - 1)


@pytest.mark.parametrize(
    ("body", "number"),
    [
        ("", 7311),
        ("optional int32 a = 7311;", 7312),
        ("reserved 7000 to 7400; optional int32 a = 7401;", 7402),
        ("reserved 7311 to 18999;", 20000),  # 19000 to 19999 are the language's own
        ("extensions 7311 to max;", 1),
    ],
)
def test_number_is_the_first_free_one(body: str, number: int) -> None:
    text, made = proto.add(f"message LayerParameter {{ {body} }}\n")
    assert made.number == number
    assert proto.parse(text).messages["LayerParameter"].names[proto.FIELD] == number


@pytest.mark.parametrize(
    "text",
    [
        "message LayerParameter {\n  optional int32 a = 1;\n}\n",
        "message LayerParameter {\r\n  optional int32 a = 1;\r\n}\r\nmessage B {}\r\n",
        "message LayerParameter {\n  optional int32 a = 1;\n}",
        "message LayerParameter { optional int32 a = 1; }",
        "message LayerParameter {}; message B {}\n",
        "message LayerParameter {\n  optional int32 a = 1; } // the end\nmessage B {}\n",
        "message LayerParameter {\n  // }\n\t} /* more\n lines */ message B {}\n",
        "message LayerParameter {\n  optional string a = 1 [default = '}\\'}'];\n}\n\n\n",
        "\xef\xbb\xbfmessage LayerParameter {\n  // caf\xc3\xa9\n}\n",
    ],
)
def test_message_goes_in_and_out_of_any_layout(text: str) -> None:
    changed, made = proto.add(text)
    parsed = proto.parse(changed)
    assert parsed.messages["LayerParameter"].names[proto.FIELD] == made.number
    assert parsed.messages[proto.MESSAGE].names == proto.MESSAGE_FIELDS
    assert proto.remove(changed, made) == text
    assert proto.remove("// new\n" + changed + "\nmessage C {}\n", made).startswith("// new\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('syntax = "proto3"; message LayerParameter {}', "expected syntax proto2"),
        ("message Layer {}", "no message LayerParameter"),
        ("message LayerParameter { optional int32 a = 1;", "ends within a message"),
        ("message LayerParameter {}\nmessage LayerParameter {}", "line 2: .* is there twice"),
        ("<<<<<<< HEAD\nmessage LayerParameter {}", "line 1: cannot read"),
        ("message LayerParameter { optional int32 a = b; }", "expected a number, got 'b'"),
        (f"message LayerParameter {{}} message {proto.MESSAGE} {{}}", "already"),
        (f"message LayerParameter {{ optional int32 {proto.FIELD} = 1; }}", "already"),
    ],
)
def test_proto_that_is_not_understood_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        proto.add(text)


def test_edits_elsewhere_in_the_proto_survive(tiny: Path) -> None:
    trees.install(tiny, want_proto=True)
    edit(tiny, PROTO, "message V1LayerParameter", "message Mine {}\nmessage V1LayerParameter")
    edit(tiny, PROTO, "loss_param = 101;", "loss_param = 101;\n  optional int32 mine = 102;")
    assert trees.status(tiny).facts["changed"] == []
    assert trees.install(tiny).facts["changes"] == []
    trees.uninstall(tiny)
    expected = _TINY[PROTO].replace("message V1", "message Mine {}\nmessage V1")
    expected = expected.replace("m = 101;", "m = 101;\n  optional int32 mine = 102;")
    assert (tiny / PROTO).read_text() == expected
    assert not (tiny / ".sigmoid_ce").exists()


@pytest.mark.parametrize(("old", "new"), [("= 7311;", "= 7312;"), ("// sigmoid_ce end\n", "")])
def test_edited_lines_of_ours_in_the_proto_are_not_guessed_at(
    tiny: Path, old: str, new: str
) -> None:
    trees.install(tiny, want_proto=True)
    edit(tiny, PROTO, old, new)
    before = snapshot(tiny)
    assert trees.status(tiny).facts["changed"] == [PROTO]
    for force in (False, True):
        with pytest.raises(ValueError, match="marks were changed"):
            trees.uninstall(tiny, force=force)
        with pytest.raises(ValueError, match="marks were changed"):
            trees.install(tiny, force=force)
    assert snapshot(tiny) == before


def test_proto_can_be_added_later_and_stays(tiny: Path) -> None:
    before = snapshot(tiny)
    trees.install(tiny)
    assert trees.install(tiny, want_proto=True).facts["changes"] == [PROTO]
    assert trees.install(tiny).facts["proto_number"] == 7311
    trees.uninstall(tiny)
    assert snapshot(tiny) == before


# As an earlier version wrote it, or a hand.
_FIRST_MESSAGE = """
message SigmoidCrossEntropyLossParameter {
  repeated double pos_weight = 1;
  optional double weight = 2;
  optional double divisor = 3;
}
"""


def test_message_written_by_hand_may_lack_later_fields(tiny: Path) -> None:
    """The layer reads those that are there. Without the first ones it is somebody else's."""
    field = f"optional {proto.MESSAGE} {proto.FIELD} = 9;"
    edit(tiny, PROTO, "python_param = 130;", f"python_param = 130; {field}")
    before = snapshot(tiny)
    path = tiny / PROTO
    path.write_text(path.read_text() + _FIRST_MESSAGE.replace("divisor", "other"))
    with pytest.raises(ValueError, match=f"has a {proto.FIELD} of its own"):
        trees.install(tiny)
    path.write_text(path.read_text().replace("other", "divisor"))
    (note,) = (n for n in trees.status(tiny).facts["notes"] if "by hand" in n)
    assert "has no uncertain, label_smoothing, balance, balance_per_channel, " in note
    trees.install(tiny)
    trees.uninstall(tiny)
    assert snapshot(tiny) == before | {PROTO: snapshot(tiny)[PROTO]}


# ---- upgrades and local changes ----


def test_upgrade_writes_the_message_anew(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(tiny)
    with monkeypatch.context() as earlier:
        earlier.setattr(proto, "MESSAGE_FIELDS", {"pos_weight": 1, "weight": 2, "divisor": 3})
        earlier.setattr(proto, "_DECLARATIONS", proto._DECLARATIONS[:3])
        number = trees.install(tiny, want_proto=True).facts["proto_number"]
    assert "gamma" not in (tiny / PROTO).read_text()
    facts = trees.install(tiny).facts
    assert (facts["changes"], facts["proto_number"]) == ([PROTO], number)
    assert "optional double gamma = 9;" in (tiny / PROTO).read_text()
    trees.uninstall(tiny)
    assert snapshot(tiny) == before


def test_upgrade_keeps_the_first_originals(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(tiny)
    trees.install(tiny, want_proto=True)
    newer = write(tmp_path / "newer", _TINY_OVERLAY, "2.0")
    (newer / "src/caffe/new_folder/sigmoid_ce_more.cpp").unlink()
    write(newer, {"src/caffe/util/sigmoid_ce_other.cpp": "// new\n", STOCK_TEST: "// ours\n"})
    known = {trees.code_digest(_TINY[STOCK_TEST].encode()): "the tree's"}
    monkeypatch.setitem(trees.KNOWN_CODE, STOCK_TEST, known)
    monkeypatch.setattr(trees, "data_folder", lambda: newer)
    assert any("install of 2.0 over 1.0" in line for line in trees.status(tiny).lines)
    facts = trees.install(tiny).facts
    assert (facts["replaced_version"], facts["version"]) == ("1.0", "2.0")
    assert not (tiny / "src/caffe/new_folder/sigmoid_ce_more.cpp").exists()
    assert (tiny / SOURCE).read_text() == "// our source 2.0\n"
    assert trees.install(tiny).facts["changes"] == []
    trees.uninstall(tiny)
    assert snapshot(tiny) == before


def test_local_changes_to_ours_are_refused(tiny: Path) -> None:
    before = snapshot(tiny)
    trees.install(tiny)
    (tiny / SOURCE).write_text("// mine\n")
    changed = snapshot(tiny)
    assert trees.status(tiny).facts["changed"] == [SOURCE]
    for verb in (trees.install, trees.uninstall):
        with pytest.raises(ValueError, match=f"{SOURCE} was changed since it was installed"):
            verb(tiny)
    assert snapshot(tiny) == changed
    trees.install(tiny, force=True)
    assert (tiny / SOURCE).read_text() == "// our source 1.0\n"
    (tiny / SOURCE).write_text("// mine\n")
    trees.uninstall(tiny, force=True)
    assert snapshot(tiny) == before


def test_originals_put_back_by_others(tiny: Path) -> None:
    """As `git checkout .` does. Nothing would be lost, so nothing is refused."""
    before = snapshot(tiny)
    original = (tiny / SOURCE).read_bytes()
    trees.install(tiny)
    installed = snapshot(tiny)
    (tiny / SOURCE).write_bytes(original)
    assert trees.status(tiny).facts["changed"] == []
    trees.install(tiny)
    assert snapshot(tiny) == installed
    (tiny / SOURCE).write_bytes(original)
    trees.uninstall(tiny)
    assert snapshot(tiny) == before


def test_removed_files_of_ours_come_back(tiny: Path) -> None:
    (tiny / SOURCE).chmod(0o755)
    before = snapshot(tiny)
    trees.install(tiny)
    installed = snapshot(tiny)
    for name in (SOURCE, "src/caffe/util/sigmoid_ce.cpp"):
        (tiny / name).unlink()
    trees.install(tiny)
    assert snapshot(tiny) == installed
    for name in (SOURCE, "src/caffe/util/sigmoid_ce.cpp"):
        (tiny / name).unlink()
    trees.uninstall(tiny)
    assert snapshot(tiny) == before


def test_damaged_original_is_not_put_back(tiny: Path) -> None:
    trees.install(tiny)
    (tiny / f".sigmoid_ce/originals/{SOURCE}.original").write_text("x")
    before = snapshot(tiny)
    with pytest.raises(ValueError, match=r"the original of .* was changed"):
        trees.uninstall(tiny, force=True)
    assert snapshot(tiny) == before


def test_lost_record_is_not_guessed_at(tiny: Path) -> None:
    trees.install(tiny)
    shutil.rmtree(tiny / ".sigmoid_ce")
    before = snapshot(tiny)
    for verb in (trees.install, trees.uninstall):
        with pytest.raises(ValueError, match="git checkout"):
            verb(tiny, force=True)
    assert trees.status(tiny).facts["layer"] == "ours, without a record"
    assert snapshot(tiny) == before


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/outside", "README.md", "src/../../outside", ".git/config"]
)
def test_record_that_leads_elsewhere_is_refused(tiny: Path, name: str) -> None:
    trees.install(tiny)
    record = tiny / trees.RECORD
    data = json.loads(record.read_text())
    data["files"][name] = {"sha256": "0", "original": None}
    record.write_text(json.dumps(data))
    for verb in (trees.status, trees.install, trees.uninstall):
        with pytest.raises(ValueError, match="no path that sigmoid_ce uses"):
            verb(tiny)


# ---- what is refused ----

_RCF = "REGISTER_LAYER_CLASS(SigmoidCrossEntropyLoss); Dtype loss_pos = 0; Dtype loss_neg = 0;\n"
_TWO_TYPES = "template <typename Ftype, typename Btype> class LossLayer : public Layer<Ftype> {};"
_PURE = "class Layer { virtual int Mine(int a) const = 0; virtual"

# What is done to a tree, a part of the reason, and whether --force goes on.
_REFUSALS: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "another loss": (
        lambda t: write(t, {SOURCE: "SigmoidCrossEntropyLossLayer " + _RCF}),
        f"{SOURCE} is no version that sigmoid_ce knows: it looks like the stock layer, but for "
        "loss_pos, loss_neg, and may compute another loss",
        True,
    ),
    "another number": (
        lambda t: edit(t, HEADER, "{}", "{ int label = 1; }"),
        "with another order or other numbers",
        True,
    ),
    "a merge conflict": (
        lambda t: edit(t, HEADER, "{};", "{};\n<<<<<<< HEAD\n>>>>>>> mine\n"),
        "marks of a merge conflict",
        True,
    ),
    "one of our files": (
        lambda t: write(t, {"src/caffe/util/sigmoid_ce.cpp": "// mine\n"}),
        "sigmoid_ce.cpp is there, and was not put there by this tool",
        True,
    ),
    "a derived class": (
        lambda t: write(
            t, {"src/x.cpp": "class A : public SigmoidCrossEntropyLossLayer<float> {};"}
        ),
        "src/x.cpp derives a class from SigmoidCrossEntropyLossLayer",
        True,
    ),
    "a user of the class": (
        lambda t: write(t, {"tools/x.cu": "SigmoidCrossEntropyLossLayer<float> a;"}),
        "tools/x.cu uses the class",
        True,
    ),
    "another registration": (
        lambda t: write(t, {"src/x.cpp": "REGISTER_LAYER_CREATOR(SigmoidCrossEntropyLoss, Make);"}),
        "src/x.cpp registers the type",
        False,
    ),
    "C++11 in Makefile.config": (
        lambda t: write(t, {"Makefile.config": "A = 1\nCXXFLAGS += -std=c++11 -O2\n"}),
        "Makefile.config:2 asks for -std=c++11, the layer needs C++14",
        True,
    ),
    "C++11 in CMake": (
        lambda t: write(t, {"cmake/X.cmake": "set(CMAKE_CXX_STANDARD 11)\n"}),
        "cmake/X.cmake:1 asks for CMAKE_CXX_STANDARD 11",
        True,
    ),
    "two element types": (
        lambda t: write(t, {LOSS_HEADER: _TWO_TYPES}),
        "two element types",
        False,
    ),
    "no LossLayer": (
        lambda t: (t / LOSS_HEADER).write_text('#include "caffe/proto/caffe.pb.h"\n'),
        f"{LOSS_HEADER} is not as the layer needs it",
        False,
    ),
    "another generated header": (
        lambda t: edit(t, LOSS_HEADER, "caffe.pb.h", "caffe_pb.h"),
        'it has no `"caffe/proto/caffe.pb.h"`',
        False,
    ),
    "no layer.hpp": (
        lambda t: (t / "include/caffe/layer.hpp").unlink(),
        "layer.hpp, which the layer needs, is not there",
        False,
    ),
    "another pure method": (
        lambda t: edit(t, "include/caffe/layer.hpp", "class Layer {\n          virtual", _PURE),
        "layers of this Caffe have to have Mine",
        False,
    ),
    "no header": (lambda t: (t / HEADER).unlink(), f"{HEADER} is not there, but the rest", False),
    "no layer": (
        lambda t: [(t / name).unlink() for name in (HEADER, SOURCE, CUDA_SOURCE)],
        "there is no layer SigmoidCrossEntropyLoss",
        False,
    ),
    "a Caffe of 2015": (
        lambda t: [
            *((t / name).unlink() for name in (HEADER, SOURCE, CUDA_SOURCE)),
            write(t, {"include/caffe/loss_layers.hpp": "class SigmoidCrossEntropyLossLayer;"}),
        ],
        "a Caffe of 2015 or earlier",
        False,
    ),
    "no param_str": (
        lambda t: edit(t, PROTO, "param_str", "other"),
        "PythonParameter has no param_str",
        False,
    ),
    "a message of the name": (
        lambda t: edit(
            t,
            PROTO,
            "python_param = 130;",
            f"python_param = 130; optional {proto.MESSAGE} {proto.FIELD} = 9;",
        ),
        f"has a {proto.FIELD} of its own",
        False,
    ),
    "an unreadable proto": (
        lambda t: edit(t, PROTO, "message V1", "@ message V1"),
        "caffe.proto: line 10: cannot read",
        False,
    ),
}


@pytest.mark.parametrize("case", _REFUSALS)
def test_refusal(tiny: Path, case: str) -> None:
    change, reason, forcible = _REFUSALS[case]
    change(tiny)
    before = snapshot(tiny)
    for verb in ({}, {"dry_run": True}, {"want_proto": True}):
        with pytest.raises(ValueError, match=re.escape(reason)) as refused:
            trees.install(tiny, **verb)
        assert ("--force" in str(refused.value)) == forcible
    if case != "one of our files":  # known when the files are compared
        problems = trees.status(tiny).facts["problems"]
        assert any(reason in p["reason"] and p["forcible"] == forcible for p in problems)
    assert snapshot(tiny) == before
    if forcible:
        facts = trees.install(tiny, force=True).facts
        assert any(reason in forced for forced in facts["forced"])
        trees.uninstall(tiny)
    else:
        with pytest.raises(ValueError, match=re.escape(reason)):
            trees.install(tiny, force=True)
    assert snapshot(tiny) == before


def test_comments_and_line_breaks_do_not_matter(tiny: Path) -> None:
    text = (tiny / HEADER).read_text().replace("> class", ">\r\n/* ours */ class") + "// end\n"
    (tiny / HEADER).write_bytes(text.encode())
    before = snapshot(tiny)
    trees.install(tiny)
    trees.uninstall(tiny)
    assert snapshot(tiny) == before


def test_uses_that_do_no_harm_are_notes(tiny: Path) -> None:
    include = f'#include "caffe/layers/{trees.LAYER}.hpp"\n'
    write(
        tiny,
        {
            "src/caffe/test/test_net.cpp": '// "SigmoidCrossEntropyLoss" by name\n',
            "src/caffe/test/test_mine.cpp": "SigmoidCrossEntropyLossLayer<float> a;\n",
            "src/caffe/mine.cpp": include,
            "src/caffe/layers/multibox_loss_layer.cpp": 'Create("SigmoidCrossEntropyLoss");\n',
        },
    )
    outcome = trees.status(tiny)
    assert outcome.facts["problems"] == []
    assert [note.split()[0] for note in outcome.facts["notes"]] == [
        "src/caffe/mine.cpp",
        "src/caffe/test/test_mine.cpp",
    ]


@pytest.mark.parametrize("committed", [False, True])
def test_reason_says_how_a_file_stands_to_git(tiny: Path, committed: bool) -> None:
    git = tool("git")
    if git is None:
        missing("git")
    change = SOURCE, "REGISTER", "int mine; REGISTER"
    if committed:
        edit(tiny, *change)
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run([str(git), *command], cwd=tiny, check=True)
    if not committed:
        edit(tiny, *change)
    expected = "(as in git's HEAD)" if committed else "(changed since git's HEAD)"
    with pytest.raises(ValueError, match=re.escape(expected)):
        trees.install(tiny)
    trees.install(tiny, force=True)
    listed = subprocess.run(
        [str(git), "status", "--porcelain"], cwd=tiny, capture_output=True, text=True, check=True
    )
    assert ".sigmoid_ce" not in listed.stdout


def test_what_is_no_tree(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, reason in (
        ("nothing", "there is no such folder"),
        ("file", "expected the folder of a Caffe source tree, got a file"),
        ("empty", "no Caffe source tree"),
    ):
        for verb in (trees.status, trees.install, trees.uninstall):
            with pytest.raises(ValueError, match=reason):
                verb(tmp_path / name)
    assert snapshot(tmp_path).keys() == {"empty", "file"}


@pytest.mark.parametrize("name", [HEADER, PROTO, "src/caffe/util", "include/caffe", ".sigmoid_ce"])
def test_links_are_not_followed(tiny: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    path = tiny / name
    if path.exists():
        path.rename(outside)
    else:
        outside.mkdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="is a symbolic link"):
        trees.install(tiny, force=True, want_proto=True)
    assert snapshot(tmp_path) == before


def test_linked_tree_and_linked_folder_within_it(tiny: Path, tmp_path: Path) -> None:
    (tiny / "elsewhere").mkdir()
    (tiny / "src/caffe/util").symlink_to("../../elsewhere")
    (tmp_path / "link").symlink_to(tiny)
    before = snapshot(tiny)
    trees.install(tmp_path / "link")
    assert (tiny / "elsewhere/sigmoid_ce.cpp").exists()
    trees.uninstall(tmp_path / "link")
    assert snapshot(tiny) == before


def test_tree_without_permission_to_write(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # who may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: "util" not in str(path))
    else:
        (tiny / "include/caffe/util").chmod(0o555)
    before = snapshot(tiny)
    with pytest.raises(PermissionError, match="no permission to write"):
        trees.install(tiny)
    assert snapshot(tiny) == before
    assert trees.install(tiny, dry_run=True).diff
    (tiny / "include/caffe/util").chmod(0o755)


# ---- all or nothing ----


def _steps(verb: Callable[[], object]) -> int:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_step", step)
        verb()
    return count


def _fail_at(number: int, error: BaseException | None) -> Callable[[], None]:
    """A step that fails, or kills the process, the `number`-th time it is called."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == number:
            if error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise error

    return step


_VERBS: dict[str, Callable[[Path], object]] = {
    "install": lambda tree: trees.install(tree, want_proto=True),
    "upgrade": lambda tree: trees.install(tree),
    "uninstall": lambda tree: trees.uninstall(tree),
}


def _start(verb: str, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A tiny tree as the verb finds it."""
    patch.setattr(journal, "_sync", lambda handle: None)  # for a killed process it makes no odds
    tree = use_tiny(patch, folder)
    if verb != "install":
        trees.install(tree, want_proto=True)
    if verb == "upgrade":
        overlay = write(folder / "overlay-2.0", _TINY_OVERLAY, "2.0")
        (overlay / "src/caffe/new_folder/sigmoid_ce_more.cpp").unlink()
        patch.setattr(trees, "data_folder", lambda: overlay)
    return tree


@pytest.mark.parametrize(
    ("verb", "error"),
    [
        ("install", OSError(28, "No space left")),
        ("install", KeyboardInterrupt()),
        ("upgrade", OSError(28, "No space left")),
        ("uninstall", OSError(28, "No space left")),
    ],
)
def test_error_at_any_step_leaves_the_tree_as_it_was(
    verb: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _start(verb, tmp_path, monkeypatch)
    before = snapshot(first)
    tree = shutil.copytree(first, tmp_path / "copy")
    steps = _steps(lambda: _VERBS[verb](tree))
    after = snapshot(tree)
    assert steps > 20
    for number in range(1, steps + 1):
        if snapshot(tree) != before:
            shutil.rmtree(tree)
            shutil.copytree(first, tree)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "_step", _fail_at(number, error))
            with pytest.raises(type(error)):
                _VERBS[verb](tree)
        if snapshot(tree) != before:
            # Only at the very end, when all is done but leftovers could not be removed.
            assert number >= steps - 2
            trees.status(tree)
            assert snapshot(tree) == after


def kill_everywhere(verb: str, folder: Path) -> int:
    """Kills the verb at its every step, in children of this process; returns how many there were.

    After the next run, here one that only looks, the tree must be as before or as after. At some
    steps the run that mends is killed as well, and what was asked for is asked for again.
    """
    with pytest.MonkeyPatch.context() as patch:
        first = _start(verb, folder, patch)
        before = snapshot(first)
        copy = shutil.copytree(first, folder / "copy")
        steps = _steps(lambda: _VERBS[verb](copy))
        after = snapshot(copy)
        seen = set()
        for number in range(1, steps + 2):
            tree = shutil.copytree(first, folder / f"tree-{number}")
            assert _killed(lambda t=tree: _VERBS[verb](t), number) == (number <= steps)
            if number % 8 == 0:
                for again in (1, 4, 9):
                    _killed(lambda t=tree: trees.status(t), again)
            trees.status(tree)
            found = snapshot(tree)
            assert found in (before, after), f"{verb} killed at step {number} of {steps}"
            seen.add(found == after)
            if number % 4 == 0:
                _VERBS[verb](tree)
                assert snapshot(tree) == after
            shutil.rmtree(tree)
        assert seen == {False, True}
        return steps


def _killed(work: Callable[[], object], number: int) -> bool:
    """Runs something in a child that is killed at a step, unless it ends before."""
    child = os.fork()
    if child == 0:
        journal._step = _fail_at(number, None)
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("verb", _VERBS)
def test_killed_at_any_step(verb: str, tmp_path: Path) -> None:
    # In a process of its own, without the threads that make a fork unsafe.
    code = (
        "import sys; from pathlib import Path; from tests.test_caffe_tree import kill_everywhere; "
        "print(kill_everywhere(sys.argv[1], Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, verb, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) > 20


def _interrupt(tree: Path, verb: str, number: int) -> None:
    """What a kill leaves, in this process: the error is not handled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_step", _fail_at(number, KeyboardInterrupt()))
        patch.setattr(journal, "_undo", lambda tree, plan: None)
        with pytest.raises(KeyboardInterrupt):
            _VERBS[verb](tree)


def test_dry_run_does_not_mend(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(tiny, tiny.parent / "copy")
    steps = _steps(lambda: _VERBS["install"](copy))
    _interrupt(tiny, "install", steps - 6)
    before = snapshot(tiny)
    for verb in (trees.install, trees.uninstall):
        with pytest.raises(RuntimeError, match=r"an earlier run .* was interrupted"):
            verb(tiny, dry_run=True)
    assert snapshot(tiny) == before
    outcome = trees.status(tiny)
    assert outcome.lines[0] == "an interrupted run is completed: install 1.0"
    assert snapshot(tiny) == snapshot(copy)


def test_edit_after_an_interrupted_run_is_not_overwritten(tiny: Path) -> None:
    copy = shutil.copytree(tiny, tiny.parent / "copy")
    steps = _steps(lambda: _VERBS["install"](copy))
    _interrupt(tiny, "install", steps - 6)
    (tiny / SOURCE).write_text("// mine\n")
    before = snapshot(tiny)
    for verb in (trees.status, trees.install, trees.uninstall):
        with pytest.raises(RuntimeError, match=f"{SOURCE} was changed after a run was interrupted"):
            verb(tiny)
    assert snapshot(tiny) == before
    (tiny / SOURCE).write_text(_TINY[SOURCE])
    trees.status(tiny)
    assert snapshot(tiny) == snapshot(copy)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 1, "what": "x", "changes": [1], "mkdir": [], "rmdir": []}',
        '{"format": 1, "what": "x", "mkdir": [], "rmdir": []}',
        '{"format": 1, "what": "x", "changes": [], "mkdir": ["../outside"], "rmdir": []}',
        '{"format": 1, "what": "x", "changes": [{"path": "/outside", "before": null, '
        '"after": null}], "mkdir": [], "rmdir": []}',
    ],
)
def test_journal_of_others_is_refused(tiny: Path, text: str) -> None:
    write(tiny, {".sigmoid_ce/journal.json": text})
    before = snapshot(tiny.parent)
    for verb in (trees.status, trees.install, trees.uninstall):
        with pytest.raises((RuntimeError, ValueError), match=r"journal\.json|no path that"):
            verb(tiny)
    assert snapshot(tiny.parent) == before


def test_concurrent_runs(tiny: Path) -> None:
    before = snapshot(tiny)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: trees.install(tiny, want_proto=True), range(4)))
    assert sorted(bool(outcome.facts["changes"]) for outcome in outcomes) == [False] * 3 + [True]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: trees.uninstall(tiny), range(4)))
    assert sorted(bool(outcome.facts["changes"]) for outcome in outcomes) == [False] * 3 + [True]
    assert snapshot(tiny) == before


def test_a_run_that_does_not_end_is_not_waited_for(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_LOCK_SECONDS", 0.1)
    before = snapshot(tiny)
    with journal.locked(tiny), pytest.raises(RuntimeError, match=r"another run .* is at work"):
        trees.install(tiny)
    assert snapshot(tiny) == before


# ---- the command ----


def test_commands(tiny: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = run(caffe, ["status", str(tiny)])
    assert result.exit_code == 0
    assert "possible   install of 1.0: 3 files replaced or edited, 4 added" in result.output
    result = run(caffe, ["install", str(tiny), "--dry-run", "--proto"])
    assert result.exit_code == 0
    assert f"--- a/{PROTO}\n+++ b/{PROTO}\n" in result.output
    assert not (tiny / ".sigmoid_ce").exists()
    result = run(caffe, ["install", str(tiny), "--proto", "--json", str(tmp_path / "facts")])
    assert result.exit_code == 0
    assert "1.0 is installed" in result.output
    assert json.loads((tmp_path / "facts").read_text())["proto_number"] == 7311
    result = run(caffe, ["status", str(tiny), "--json", "-"])
    assert json.loads(result.output)["installed"] == "1.0"
    result = run(caffe, ["uninstall", str(tiny), "--dry-run"])
    assert f"--- a/{SOURCE}\n+++ b/{SOURCE}\n" in result.output
    assert run(caffe, ["uninstall", str(tiny)]).exit_code == 0
    assert "nothing to do" in run(caffe, ["uninstall", str(tiny)]).output
    write(tiny, {SOURCE: "int mine;"})
    result = run(caffe, ["install", str(tiny)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "--force" in result.output
    assert run(caffe, ["install", str(tiny), "--force"]).exit_code == 0


def test_pythonpath_has_the_published_modules() -> None:
    result = CliRunner().invoke(caffe, ["pythonpath"])
    assert result.exit_code == 0
    assert (Path(result.output.strip()) / "loss_layers.py").is_file()
