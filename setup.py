"""A thin bridge from pip to CMake; everything about the package itself is in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent


def find_program(name: str) -> str:
    """The program on PATH, or the one that pip put beside this Python."""
    places = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    program = shutil.which(name, path=places)
    if program is None:
        raise SystemExit(f"cscl_fast: {name} was not found; run: pip install {name}")
    return program


class CMakeBuild(build_ext):
    """Compiles the top-level module `_cscl_fast` with CMake and Ninja.

    The module never lies inside the checkout, not even for `pip install -e`: a library left there
    by an earlier build would hide a newer installed one from everything that starts in the
    checkout. Editable installs put it straight into site-packages.
    """

    def run(self) -> None:
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        ninja = find_program("ninja")
        configure = [
            find_program("cmake"), "-S", str(SOURCE), "-B", str(build), "-G", "Ninja",
            # The build folder outlives pip's temporary environments, whose paths CMake remembers.
            "--fresh", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=" + ("Debug" if self.debug else "Release"),
        ]  # fmt: skip
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        compile_ = [configure[0], "--build", str(build)]
        if os.environ.get("MAX_JOBS"):
            compile_ += ["--parallel", os.environ["MAX_JOBS"]]
        for command in (configure, compile_):
            if subprocess.run(command).returncode != 0:
                raise SystemExit(
                    f"cscl_fast: this command failed, see above: {shlex.join(command)}"
                )
        module = self.get_ext_filename("_cscl_fast")
        target = self.module_folder() / module
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / module, target)

    def module_folder(self) -> Path:
        if self.editable_mode:
            return Path(self.get_finalized_command("install").install_lib)
        return SOURCE / "build" if self.inplace else Path(self.build_lib)

    def get_outputs(self) -> list[str]:
        if self.editable_mode:
            return []
        return [str(self.module_folder() / self.get_ext_filename("_cscl_fast"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(ext_modules=[Extension("_cscl_fast", sources=[])], cmdclass={"build_ext": CMakeBuild})
