"""Scripts run in this process, as from a command line."""

import runpy
import sys
from typing import Any

import pytest

from tests.conftest import ROOT


def run_script(name: str, *arguments: object, folder: str = "experiments") -> Any:
    """The exit code of `python FOLDER/NAME.py ARGUMENTS`."""
    path = str(ROOT / folder / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
    return ended.value.code
