"""The site is built from docs/ and the docstrings without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import stce_jax

ROOT = Path(__file__).parents[2]
PUBLIC = sorted(stce_jax._HOMES)


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"docs/ has warnings:\n{done.stderr}"
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    for name in PUBLIC:
        assert re.search(rf'id="stce_jax[\w.]*\.{name}"', reference), f"the reference lacks {name}"
