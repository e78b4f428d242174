import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load(name: str) -> ModuleType:
    """A module that lies beside this file; tests are no packages."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake_loop() -> ModuleType:
    return sys.modules.get("fake_loop") or load("fake_loop")


@pytest.fixture(scope="session")
def faulty_disk() -> ModuleType:
    return sys.modules.get("faulty_disk") or load("faulty_disk")
