"""Make ``.venv`` and install one locked set of packages into it: ``python3 bootstrap.py local`` (or ``dev``).

Runs on whatever ``python3`` is, before anything is installed: the standard library only, and no syntax that an old
interpreter could not parse, so that it gets as far as saying that it is too old. What goes wrong is one line.
"""
# ruff: noqa: UP004, UP024, UP031

import errno
import os
import signal
import subprocess
import sys
import time

OLDEST = (3, 11)
CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VENV = os.path.join(CHECKOUT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
LOCAL = os.path.join(CHECKOUT, ".local")
LOG = os.path.join(LOCAL, "pip.log")

# Each set: the files to install, in order, with pip's options for each.
SETS = {
    "local": [("requirements-local.txt", [])],
    "dev": [("requirements-dev.txt", []), ("requirements-spec.txt", ["--no-deps"])],
}  # type: dict[str, list[tuple[str, list[str]]]]
INCLUDED_IN = {"local": ["local", "dev"], "dev": ["dev"]}  # dev is locked on top of local
UNREACHABLE = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeout",
    "ProxyError",
    "Connection to ",
    "SSLError",
)


def main(name):
    # type: (str) -> None
    refuse_an_old_interpreter()
    refuse_without_venv()
    with lock():
        if is_installed(name):
            return
        if not is_usable():
            create()
        for requirements, options in SETS[name]:
            install(requirements, options)
        with open(stamp(name), "w") as file:
            file.write(wanted(name))


def refuse_an_old_interpreter():
    # type: () -> None
    if sys.version_info < OLDEST:
        version = ".".join(str(part) for part in sys.version_info[:3])
        fail("Python 3.11 or newer is needed; %s is %s. Name one: PYTHON=python3.11" % (sys.executable, version))


def refuse_without_venv():
    # type: () -> None
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        package = "python%d.%d-venv" % sys.version_info[:2]
        fail("%s has no %s module. On Debian and Ubuntu: apt install %s" % (sys.executable, error.name, package))


def is_installed(name):
    # type: (str) -> bool
    return os.access(PYTHON, os.X_OK) and any(text_of(stamp(each)) == wanted(each) for each in INCLUDED_IN[name])


def is_usable():
    # type: () -> bool
    """Whether .venv is whole and made by an interpreter of our version."""
    program = "import pip, sys; sys.exit(sys.version_info[:2] != (%d, %d))" % sys.version_info[:2]
    try:
        return subprocess.call([PYTHON, "-c", program], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def create():
    # type: () -> None
    with step("creating .venv with Python %d.%d.%d" % sys.version_info[:3]):
        code, output = run([sys.executable, "-m", "venv", "--clear", VENV])
    if code:
        fail("%s could not create .venv: %s" % (sys.executable, last_line(output)))


def install(requirements, options):
    # type: (str, list[str]) -> None
    text = text_of(os.path.join(CHECKOUT, requirements)) or ""
    packages = sum("==" in line and not line.lstrip().startswith("#") for line in text.splitlines())
    command = [PYTHON, "-m", "pip", "install", "--require-hashes", "--no-input", "--disable-pip-version-check"]
    with step("installing %s (%d packages)" % (requirements, packages)):
        code, output = run(command + options + ["-r", os.path.join(CHECKOUT, requirements)])
    with open(LOG, "w") as file:
        file.write(output)
    if not code:
        return
    if any(sign in output for sign in UNREACHABLE):
        fail("The package index cannot be reached. Connect this machine or set PIP_INDEX_URL. (%s)" % shown(LOG))
    errors = [line[len("ERROR: ") :] for line in output.splitlines() if line.startswith("ERROR: ")]
    fail("Installing %s failed: %s (%s)" % (requirements, (errors or [last_line(output)])[0], shown(LOG)))


def run(command):
    # type: (list[str]) -> tuple[int, str]
    """Exit code and output. The child does not outlive us: a signal ends it first."""
    env = dict(os.environ)
    env.setdefault("PIP_RETRIES", "2")
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    try:
        output = child.communicate()[0]
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    return child.returncode, output.decode("utf-8", "replace")


class step(object):
    """One line a step, with the time it took."""

    def __init__(self, what):
        # type: (str) -> None
        self.what = what

    def __enter__(self):
        # type: () -> None
        self.started = time.time()
        sys.stdout.write("  %-52s" % (self.what + " ..."))
        sys.stdout.flush()

    def __exit__(self, kind, error, trace):
        # type: (object, object, object) -> None
        sys.stdout.write("%5.1f s\n" % (time.time() - self.started))
        sys.stdout.flush()


class lock(object):
    """`make demo` and `make test` at the same time install one after the other."""

    def __enter__(self):
        # type: () -> None
        import fcntl

        if not os.path.isdir(LOCAL):
            os.makedirs(LOCAL)
        self.file = open(os.path.join(LOCAL, "bootstrap.lock"), "a")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except EnvironmentError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            sys.stdout.write("  waiting for another make that is installing packages ...\n")
            fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, kind, error, trace):
        # type: (object, object, object) -> None
        self.file.close()


def stamp(name):
    # type: (str) -> str
    return os.path.join(VENV, "installed-" + name)


def wanted(name):
    # type: (str) -> str
    """What the stamp says when the set is installed: the interpreter and every locked file."""
    import hashlib

    digest = hashlib.sha256(("%d.%d" % sys.version_info[:2]).encode())
    for requirements, _ in SETS[name]:
        digest.update((text_of(os.path.join(CHECKOUT, requirements)) or "").encode("utf-8"))
    return digest.hexdigest()


def text_of(path):
    # type: (str) -> str | None
    try:
        with open(path) as file:
            return file.read()
    except EnvironmentError:
        return None


def last_line(output):
    # type: (str) -> str
    return (output.strip().splitlines() or ["no reason given"])[-1]


def shown(path):
    # type: (str) -> str
    return os.path.relpath(path, os.getcwd())


def fail(message):
    # type: (str) -> None
    sys.stderr.write(message + "\n")
    sys.exit(1)


def end_on_sigterm(signum, frame):
    # type: (int, object) -> None
    sys.exit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end_on_sigterm)
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        fail("\nStopped.")
    except EnvironmentError as error:
        fail("%s: %s" % (error.filename or "Preparing .venv failed", error.strerror))
