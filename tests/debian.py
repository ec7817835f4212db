"""Programs of Debian packages for tests: the installed one, else the package unpacked (not installed: nothing is configured or started)."""

import os
import shutil
import subprocess
from pathlib import Path

SYSTEM_PATH = "/usr/sbin:/usr/local/sbin"


def program(name: str, package: str, folder: Path) -> Path:
    """Fails, naming the package, where it is neither installed nor can be had."""
    installed = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    if installed:
        return Path(installed)
    if not any(folder.iterdir()):
        _unpack(package, folder)
    (unpacked,) = (path for path in (folder / "usr").glob(f"*bin/{name}"))
    return unpacked


def unpacked(pattern: str, package: str, folder: Path) -> Path:
    """A file that no PATH names: the installed one, else that of the package."""
    for root in (Path("/"), folder):
        for found in sorted(root.glob(pattern)):
            return found
    _unpack(package, folder)
    return next(folder.glob(pattern))


def _unpack(package: str, folder: Path) -> None:
    if os.geteuid() == 0:
        _run(package, "apt-get", "update", "-qq", cwd=folder)
    _run(package, "apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=folder)
    (downloaded,) = folder.glob(f"{package}_*.deb")
    _run(package, "dpkg", "-x", str(downloaded), ".", cwd=folder)


def _run(package: str, *command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{package} is needed (apt-get install {package}): {' '.join(command)}: {done.stderr}"
