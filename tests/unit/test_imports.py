"""What must stay importable without torch: recipes are checked, and rewards served, where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "module",
    [
        "flow_grpo.cli",
        "flow_grpo.score",
        "gateway.app",
        "reward_api",
        "reward_services.registry",
        "reward_services.service",
        "tiny_world.prompts",
        "trainer.advantages",
        "trainer.config",
        "trainer.make_prompts",
        "trainer.prompts",
        "trainer.scoring",
        "trainer.task_table",
    ],
)
def test_a_module_imports_without_torch(module: str):
    heavy = ("torch", "diffusers", "transformers", "datasets")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_nothing_of_the_trainer_needs_torch_where_it_is_not(tmp_path: Path):
    """The same with torch barred, so that a hidden optional import would show."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not installed')\n")
    code = "import trainer.config, trainer.prompts, trainer.scoring, gateway.app, reward_api, reward_services.service"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
