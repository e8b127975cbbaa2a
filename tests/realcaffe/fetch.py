"""Source trees of real Caffes: BVLC Caffe 1.0 as Debian 11 packages it, and an older fork.

The trees are as published (Debian's own patches applied), and are not to be written to.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from .cache import BuildError, Missing, entry, execute, once

DEBIAN_PACKAGE = "caffe"
DEBIAN_VERSION = "1.0.0+git20180821.99bd997-8"
DEBIAN_SUITE = "bullseye"
# Each of them may be absent; the first holds the keys of all the releases then in use.
DEBIAN_KEYRINGS = (
    "debian-archive-keyring.gpg",
    "debian-archive-bullseye-automatic.gpg",
    "debian-archive-bullseye-stable.gpg",
)

FORK_PACKAGE = "brocolli-caffe"
FORK_VERSION = "9.0.2"
FORK_SHA256 = "c6410cc60bdd6db685d441b66be7df05410f8850ac88d6b75d48ef9b2315c08a"


@once
def bvlc_source() -> Path:
    """BVLC Caffe 1.0: the tree that SIGMOID_CE_CAFFE_SRC names, else Debian's source package.

    Raises Missing where neither is to be had.
    """
    own = os.environ.get("SIGMOID_CE_CAFFE_SRC")
    if own:
        tree = Path(own).absolute()
        if not (tree / "src/caffe/proto/caffe.proto").is_file():
            raise Missing(f"a Caffe source tree at SIGMOID_CE_CAFFE_SRC={own}")
        return tree
    return entry(f"source-{DEBIAN_PACKAGE}-{DEBIAN_VERSION}", _from_debian) / "tree"


@once
def fork_source() -> Path:
    """The older fork, from Python's package index. Raises Missing where pip cannot get it."""
    return entry(f"source-{FORK_PACKAGE}-{FORK_VERSION}", _from_index) / "tree"


def _debian_archives() -> list[str]:
    """The Debian archives in the machine's own apt configuration, as apt itself reads it."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)"],
        capture_output=True,
        text=True,
    )
    archives = []
    for line in listed.stdout.splitlines():
        release, component, uri = line.split(" ", 2)
        # Suites with a dash are updates and security, which have no source of an old release.
        if component == "main" and "-" not in release and uri not in archives:
            archives.append(uri)
    return archives


def _private_apt(folder: Path, archives: list[str]) -> Path:
    """An apt configuration of our own: lists, state and cache under `folder`, one source package
    suite. The machine's proxy and credentials stay in use, its source lists and hooks do not."""
    keyrings = [Path("/usr/share/keyrings") / name for name in DEBIAN_KEYRINGS]
    signed_by = ",".join(str(path) for path in keyrings if path.exists())
    if not signed_by:
        raise Missing("the keyring of the Debian archive (package debian-archive-keyring)")
    for name in ("state/lists/partial", "cache/archives/partial", "empty"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(
        "".join(f"deb-src [signed-by={signed_by}] {uri} {DEBIAN_SUITE} main\n" for uri in archives)
    )
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::SourceList "{folder}/sources.list";\n'
        f'Dir::Etc::SourceParts "{folder}/empty";\n'
        f'Dir::Etc::Preferences "{folder}/empty/none";\n'
        f'Dir::Etc::PreferencesParts "{folder}/empty";\n'
        f'Dir::State "{folder}/state";\n'
        f'Dir::State::Lists "{folder}/state/lists";\n'
        f'Dir::Cache "{folder}/cache";\n'
        # As root, apt downloads as another user, who cannot write below a private home.
        'APT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\n'
        'Acquire::Retries "2";\n'
        "#clear APT::Update::Pre-Invoke;\n"
        "#clear APT::Update::Post-Invoke;\n"
        "#clear APT::Update::Post-Invoke-Success;\n"
        "#clear DPkg::Post-Invoke;\n"
    )
    return configuration


def _from_debian(folder: Path) -> None:
    for program, package in (("apt-get", "apt"), ("dpkg-source", "dpkg-dev")):
        if shutil.which(program) is None:
            raise Missing(
                f"{program} (Debian's package {package}), which gets Caffe's sources; "
                "SIGMOID_CE_CAFFE_SRC=DIR names a tree instead; it"
            )
    log = folder / "log"
    what = f"Debian's source package {DEBIAN_PACKAGE} {DEBIAN_VERSION}"
    # A mirror may lack the old release: the next one is tried.
    reason = "no Debian archive in this machine's apt configuration"
    for archive in _debian_archives():
        apt = folder / "apt"
        shutil.rmtree(apt, ignore_errors=True)
        configuration = _private_apt(apt, [archive])
        try:
            execute(["apt-get", "-q", "-c", configuration, "update"], log)
            wanted = f"{DEBIAN_PACKAGE}={DEBIAN_VERSION}"
            execute(
                ["apt-get", "-q", "-c", configuration, "source", "--download-only", wanted],
                log,
                cwd=folder,
            )
        except BuildError as error:
            reason = str(error)
            continue
        (description,) = folder.glob("*.dsc")
        # Warns that the uploader's signature cannot be checked; apt has checked the archive's.
        execute(["dpkg-source", "-x", description, folder / "tree"], log)
        shutil.rmtree(apt)
        return
    raise Missing(f"{what} ({reason.strip()})")


def _from_index(folder: Path) -> None:
    log = folder / "log"
    name = f"{FORK_PACKAGE}=={FORK_VERSION}"
    # pip reads the metadata by running setup.py, which in other versions of this fork wants
    # ANACONDA_HOME; Requires-Python is about installing it.
    command: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", FORK_PACKAGE, "--ignore-requires-python", "--dest", folder, name]
    try:
        execute(command, log, env={**os.environ, "ANACONDA_HOME": str(folder)})
    except BuildError as error:
        raise Missing(f"the source of {name} from pip's index ({error})") from error
    (archive,) = folder.glob("*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != FORK_SHA256:
        raise BuildError(f"{archive.name} has sha256 {found}, expected {FORK_SHA256}")
    with tarfile.open(archive) as packed:
        if hasattr(tarfile, "data_filter"):
            packed.extractall(folder / "unpacked", filter="data")
        else:
            packed.extractall(folder / "unpacked")
    (top,) = (folder / "unpacked").iterdir()
    top.rename(folder / "tree")
