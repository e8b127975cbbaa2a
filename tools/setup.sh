#!/bin/sh
# Makes .venv, and first what a bare Debian or Ubuntu machine lacks for it: a C++ compiler, Python's
# headers, Python's venv. They are installed with apt as root or with a sudo that asks no password;
# otherwise one message names the packages. PYTHON and CXX choose the programs.
#
#   tools/setup.sh          .venv and what it needs
#   tools/setup.sh cross    what the long tests compile and run with besides: clang and its fuzzer, an old g++,
#                           the aarch64 compiler, the emulator of other CPUs, valgrind; a warning if not to
#                           be had
#   tools/setup.sh caffe    what the tests with a real Caffe build it with (Debian's names); a warning if not to
#                           be had
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }

find_python() {
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

compiles() {
  printf '#include <thread>\nint main() {}\n' | "$@" -std=c++14 -fsyntax-only -x c++ - >/dev/null 2>&1
}

# The names that CMake tries. CXX may carry arguments, hence unquoted.
has_compiler() {
  if [ -n "${CXX:-}" ]; then
    compiles $CXX
  else
    compiles c++ || compiles g++ || compiles clang++
  fi
}

# Debian's packages that would bring what is missing.
missing() {
  has_compiler || echo g++
  "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "python$version-venv"
  "$python" - <<'PROBE' || echo "python$version-dev"
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
PROBE
}

missing_cross() {
  command -v aarch64-linux-gnu-g++ >/dev/null || echo g++-aarch64-linux-gnu
  { command -v qemu-aarch64 && command -v qemu-x86_64; } >/dev/null || echo qemu-user
  command -v clang++ >/dev/null || echo clang
  { command -v valgrind && [ -e /usr/include/valgrind/callgrind.h ]; } >/dev/null || echo valgrind
  # The oldest compiler of Debian 12; other releases may not have it.
  if grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release; then
    command -v g++-11 >/dev/null || echo g++-11
  fi
}

# What -fsanitize links with is a package of its own in some releases, and comes with clang in others.
has_fuzzer() {
  printf 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }\n' |
    clang++ -fsanitize=fuzzer,address,undefined -x c++ - -o /dev/null 2>/dev/null
}

# dpkg-dev unpacks Caffe's sources. cmake and ninja come with .venv.
missing_caffe() {
  command -v dpkg-query >/dev/null || return 0
  for package in dpkg-dev g++ protobuf-compiler libprotobuf-dev libgoogle-glog-dev libgflags-dev \
    libboost-system-dev libboost-thread-dev libboost-filesystem-dev libboost-python-dev \
    libhdf5-dev libopenblas-dev; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || echo "$package"
  done
}

# Installs the packages named, or says which they are and fails.
apt_install() {
  if [ "$(id -u)" = 0 ]; then
    sudo=
  elif sudo -n true 2>/dev/null; then
    sudo="sudo -n"
  else
    sudo=no
  fi
  if [ "$sudo" = no ] || ! command -v apt-get >/dev/null; then
    say "missing on this machine. Install these packages, then call make again:"
    say "    sudo apt-get install $*"
    return 1
  fi
  say "installing $*"
  apt="$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600"
  # A broken third-party source must not stop an install from the others.
  $apt update >/dev/null 2>&1 || true
  $apt install --no-install-recommends "$@" >&2
}

if [ "${1:-}" = cross ]; then
  packages=$(missing_cross)
  # shellcheck disable=SC2086  # one word per package
  [ -z "$packages" ] || apt_install $packages || say "going on without them: their tests will be skipped"
  has_fuzzer || apt_install libclang-rt-dev || say "going on without clang's fuzzer: its test will be skipped"
  exit 0
fi

if [ "${1:-}" = caffe ]; then
  packages=$(missing_caffe)
  # shellcheck disable=SC2086  # one word per package
  [ -z "$packages" ] || apt_install $packages || say "going on without them: the tests with Caffe will be skipped"
  exit 0
fi

python=$(find_python)
if [ -z "$python" ]; then
  say "no Python 3.10 or newer found${PYTHON:+ at PYTHON=$PYTHON}"
  exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

packages=$(missing)
if [ -n "$packages" ]; then
  # shellcheck disable=SC2086  # one word per package
  apt_install $packages
  packages=$(missing)
  if [ -n "$packages" ]; then
    # A Python or a CXX from elsewhere is not completed by Debian's packages.
    say "still missing for $(command -v "$python")${CXX:+ and CXX=$CXX}, after installing:" $packages
    exit 1
  fi
fi

# A .venv whose Python was removed or upgraded away is made anew.
if [ -e .venv ] && ! .venv/bin/python -c '' 2>/dev/null; then
  rm -rf .venv
fi
say "making .venv with $("$python" --version)"
"$python" -m venv .venv
# Dependency groups came with pip 25.1.
.venv/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
