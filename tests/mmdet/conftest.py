"""mmdet in an environment of its own; without it these tests are skipped."""

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

# This folder alone looks like a package of that name.
_spec = importlib.util.find_spec("mmdet")
if _spec is None or _spec.origin is None:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from reward_services.geneval.official import bridge_compiled_operators

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge_compiled_operators()
        import reference  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # mmdet and mmengine warn of the torch they run on.
            item.add_marker(pytest.mark.filterwarnings("ignore"))
