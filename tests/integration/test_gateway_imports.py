import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration


def test_gateway_and_contract_import_no_torch():
    code = "import sys, gateway.app, reward_api, flow_grpo.runner, flow_grpo.cli; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "False"
