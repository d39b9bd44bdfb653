"""What processes that run together agree on."""

import re

from stce_jax.processes import peers as processes

# --- the code


def test_the_code_digest_changes_with_any_file_and_version(monkeypatch, tmp_path):
    package = tmp_path / "stce_jax"
    (package / "processes").mkdir(parents=True)
    (package / "processes" / "step.py").write_text("one")
    monkeypatch.setattr(processes, "__file__", str(package / "processes" / "peers.py"))
    digests = [processes.code_digest(), processes.code_digest()]
    assert digests[0] == digests[1] and re.fullmatch("[0-9a-f]{64}", digests[0])
    (package / "processes" / "step.py").write_text("two")
    digests.append(processes.code_digest())
    (package / "processes" / "step.py").rename(package / "step.py")
    digests.append(processes.code_digest())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    digests.append(processes.code_digest())
    assert len(set(digests)) == 4, "something else is run under the same digest"
