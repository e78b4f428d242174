"""`align --version`."""

import platform
from importlib.metadata import version

import pytest

from align.app.cli import main


def test_the_versions_that_a_report_of_a_fault_needs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    names = ("torch", "transformers", "trl", "peft")
    expected = [f"align {version('align-toolkit')}", f"python {platform.python_version()}"]
    expected += [f"{name} {version(name)}" for name in names]
    assert capsys.readouterr().out.splitlines() == expected
