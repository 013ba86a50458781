"""What docs/operations.md says to type makes files and settings that services start with."""

import os
import re
import subprocess
import sys
from pathlib import Path

DOC = Path(__file__).parents[2] / "docs/operations.md"


def test_the_recipe_for_encryption(tmp_path: Path) -> None:
    section = DOC.read_text().partition("\n## Encryption\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    # `dualmap` of this environment.
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = "set -e\n" + "".join(blocks) + "dualmap config show\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for setting in ("tls_cert_file", "grpc_server_name", "curve_clients_dir", "curve_workers_key_file"):
        assert re.search(rf"{setting} .*\bDUALMAP_", done.stdout), setting
    assert "change-me" not in done.stdout
