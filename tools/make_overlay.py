"""Writes the kernels as the few files that go into a Caffe source tree.

    python tools/make_overlay.py            rewrite them in caffe/
    python tools/make_overlay.py --check    exit status 1 where they are not up to date

A Caffe tree finds sources by pattern and passes one set of flags to all, with its own include
folders only. So the public headers become one header, and the sources one file for the API, one
per instruction set (a file of its own, since each opens a target region) and one for CUDA, which
CPU_ONLY trees leave aside, with the internal headers pasted in. clang-format breaks the lines at
Caffe's 80 columns.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "cpp"
CUDA = ROOT / "cuda"
PUBLIC = SOURCES / "include"
OVERLAY = ROOT / "caffe"

HEADER = "include/caffe/util/sigmoid_ce.hpp"
HEADER_PARTS = ["version", "status", "options", "partial", "cpu", "cuda"]
# Below cpp/ and cuda/.
FILES = {
    "src/caffe/util/sigmoid_ce.cpp": [
        "math/partial.cpp",
        "cpu/system.cpp",
        "cpu/parallel.cpp",
        "cpu/dispatch.cpp",
        "cpu/cpu.cpp",
    ],
    "src/caffe/util/sigmoid_ce_scalar.cpp": ["cpu/kernel_scalar.cpp"],
    "src/caffe/util/sigmoid_ce_avx2.cpp": ["cpu/kernel_avx2.cpp"],
    "src/caffe/util/sigmoid_ce_avx512.cpp": ["cpu/kernel_avx512.cpp"],
    "src/caffe/util/sigmoid_ce_neon.cpp": ["cpu/kernel_neon.cpp"],
    "src/caffe/util/sigmoid_ce_cuda.cu": [
        "kernels_float32.cu",
        "kernels_float64.cu",
        "kernels_valid.cu",
        "plan.cpp",
        "launch.cu",
        "api.cpp",
    ],
}
# A Caffe layer has one type for everything: a quarter of the kernels.
CUDA_MACRO = "SIGMOID_CE_TARGETS_OF_SCORES_ONLY"

STYLE = "{BasedOnStyle: Google, SortIncludes: Never, DerivePointerAlignment: false}"  # 80 columns

# Caffe's lint objects to these, each by its category; there is no Caffe function for raw memory.
_LINT = [
    (re.compile(r"\b(memcpy|memset)\("), "caffe/alt_fn"),
    (re.compile(r"\blong\b"), "runtime/int"),
    (re.compile(r"\(\*\)\(|void \(\*\w+\)\(void\*\)"), "readability/casting"),
    (re.compile(r"#include <\w+\.h>"), "build/include_order"),
    (re.compile(r"\bShared& \w"), "runtime/references"),
]

# It knows no lambdas, takes the last brace of one for a function's, and objects to the semicolon,
# but not where a type stands before the first brace.
_LAMBDA = re.compile(r"(= \[[^\]]*\]\([^()]*\)) \{")

# A constant or function of a header is in no file's way; pasted in, compilers ask who uses it.
_QUIET = [
    "#if defined(__clang__)",
    '#pragma clang diagnostic ignored "-Wunused-const-variable"',
    "#endif",
]
_QUIET_CUDA = [
    "#if defined(__NVCC_DIAG_PRAGMA_SUPPORT__)",
    "#pragma nv_diag_suppress 177",
    "#elif defined(__CUDACC__)",
    "#pragma diag_suppress 177",
    "#endif",
]

# Only the machines that they are for have them.
_INTRINSICS = {"immintrin.h", "emmintrin.h", "arm_neon.h"}

_INCLUDE = re.compile(r'#include ["<](?P<name>[^">]+)[">]')


class Paste:
    """The text of some sources with each internal header pasted in where it is first included."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.system: set[str] = set()  # headers that are included on every machine
        self._seen: set[Path] = set()

    def add(self, path: Path) -> None:
        if path in self._seen:
            return
        self._seen.add(path)
        text = path.read_text()
        guard = re.search(r"^#ifndef (SIGMOID_CE_\w+_C?U?H_)\n#define \1\n", text, re.MULTILINE)
        if guard:
            text = text.replace(guard[0], "").replace(f"#endif  // {guard[1]}\n", "")
        conditions = 0
        for line in text.splitlines():
            conditions += line.startswith("#if") - line.startswith("#endif")
            include = _INCLUDE.match(line)
            source = None if include is None else _source(include["name"])
            if include is None:
                self.lines.append(line)
            elif source is not None:
                self.add(source)
            elif (PUBLIC / include["name"]).exists():
                continue
            elif conditions or include["name"] in _INTRINSICS:
                # Where the source has it, and once.
                if line not in self.lines:
                    self.lines.append(line)
            else:
                self.system.add(include["name"])

    def includes(self) -> list[str]:
        """C headers, then those of C++."""
        in_order = sorted(self.system, key=lambda name: (not name.endswith(".h"), name))
        return [f"#include <{name}>" for name in in_order]


def _source(name: str) -> Path | None:
    """A file of cpp/ or cuda/ by the name that it is included by."""
    paths = [folder / name for folder in (SOURCES, CUDA)]
    return next((path for path in paths if path.exists()), None)


def texts() -> dict[str, str]:
    """Path in the overlay to text."""
    version = re.search(
        r'SIGMOID_CE_VERSION "(.+)"', (PUBLIC / "sigmoid_ce" / "version.h").read_text()
    )
    copyright_line = re.search(r"^Copyright.*$", (ROOT / "LICENSE").read_text(), re.MULTILINE)
    assert version
    assert copyright_line
    banner = [
        f"// sigmoid_ce {version[1]}, made from its sources by tools/make_overlay.py.",
        f"// {copyright_line[0].replace('Copyright ', '')}. BSD 2-Clause License.",
    ]
    result = {}
    header = Paste()
    for part in HEADER_PARTS:
        header.add(PUBLIC / "sigmoid_ce" / f"{part}.h")
    guard = "CAFFE_UTIL_SIGMOID_CE_HPP_"
    body = [*banner, f"#ifndef {guard}", f"#define {guard}", "", *header.includes(), *header.lines]
    result[HEADER] = _formatted([*body, f"#endif  // {guard}"])
    for path, parts in FILES.items():
        source = Paste()
        for part in parts:
            found = _source(part)
            assert found, part
            source.add(found)
        include = '#include "caffe/util/sigmoid_ce.hpp"'
        cuda = path.endswith(".cu")
        define = [f"#define {CUDA_MACRO}", ""] if cuda else []
        quiet = [*_QUIET, *_QUIET_CUDA] if cuda else _QUIET
        body = [*define, *source.includes(), "", include, "", *quiet, "", *source.lines]
        result[path] = _formatted([*banner, *body])
    return result


def _formatted(lines: list[str]) -> str:
    program = shutil.which("clang-format") or str(Path(sys.executable).with_name("clang-format"))
    done = subprocess.run(
        [program, f"--style={STYLE}", "--assume-filename=overlay.cpp"],
        input=_LAMBDA.sub(r"\1 -> auto {", "\n".join(lines)) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    lines = []
    for line in done.stdout.splitlines():
        for pattern, category in _LINT:
            if pattern.search(line.partition("//")[0].rstrip()):
                lines.append(f"// NOLINT_NEXT_LINE({category})")
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the kernels into caffe/.")
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args()
    stale = 0
    for name, text in texts().items():
        path = OVERLAY / name
        before = path.read_text() if path.exists() else ""
        if before == text:
            continue
        if options.check:
            stale += 1
            sys.stdout.writelines(
                difflib.unified_diff(
                    before.splitlines(True), text.splitlines(True), name, f"{name}, from cpp/", n=0
                )
            )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
