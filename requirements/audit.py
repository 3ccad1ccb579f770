"""`audit` asks for known vulnerabilities of every package in the locks of the images.

`make audit` calls it. A package that both have, image.lock and ray.lock, is looked up once.

The exit code is 0 if every package was looked up and has none, 1 if some have any, and 2 if not
every package could be looked up, which is no statement about them. Arguments go to pip-audit:
`--vulnerability-service osv` asks another service, `--ignore-vuln ID` accepts one finding.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCKS = [str(Path(__file__).with_name(name)) for name in ("image.lock", "ray.lock")]


def audit(arguments: list[str]) -> int:
    """Runs pip-audit on the locks, prints what it found and returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="treadle-audit.") as folder:
        report = Path(folder) / "report.json"
        command = [str(Path(sys.executable).with_name("pip-audit")), "--disable-pip"]
        command += [word for lock in LOCKS for word in ("--requirement", lock)]
        command += ["--require-hashes"]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(report)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if not report.exists() or not report.stat().st_size:
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            print("Not audited: pip-audit could not ask the advisory service:", last)
            return 2
        packages = json.loads(report.read_text("utf-8"))["dependencies"]
    return summary(packages)


def summary(packages: list[dict[str, Any]]) -> int:
    """Prints one line a finding and a last line of counts; returns the exit code."""
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    findings = 0
    for package in packages:
        for finding in package.get("vulns", ()):
            findings += 1
            repaired = ", ".join(finding["fix_versions"]) or "no version yet"
            print(
                f"{package['name']} {package['version']}: {finding['id']}, repaired in {repaired}"
            )
    looked_up = len(packages) - len(skipped)
    print(f"{looked_up} of {len(packages)} packages looked up, {findings} vulnerabilities known")
    if skipped:
        print("Not audited: the advisory service does not know", ", ".join(skipped))
    if findings:
        return 1
    return 2 if skipped or not packages else 0


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1:]))
