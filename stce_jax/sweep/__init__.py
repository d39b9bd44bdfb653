"""The paper's tables as runs: `cells` (which, where), `results` of them, and a `report` of `documents` and `notes`."""
