# SPDX-License-Identifier: Apache-2.0
"""A planted key is looked for everywhere that someone else could read."""

from __future__ import annotations

import subprocess

import pytest
from fleet_under_test import ADDRESSES, Fleet

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(900)]

CANARY = "canary7Kq2vXw9Zr4TnB8mYc3"
KEY = f"sk-{CANARY}"
#: Every file that a user without rights can read, every unit, every process's arguments, every journal line.
SEARCH = f"""
setpriv --reuid 65534 --regid 65534 --clear-groups \\
  find /etc /var /run /tmp /home /root /usr/lib/systemd -type f -readable -size -5M \\
  -exec grep -l {CANARY[:12]} {{}} + 2>/dev/null
grep -rl {CANARY[:12]} /etc/systemd /run/systemd 2>/dev/null
for pid in /proc/[0-9]*; do
  [ "$pid" = "/proc/$$" ] && continue
  tr '\\0' ' ' <$pid/cmdline 2>/dev/null | grep -v 'grep\\|find\\|sh -c' | grep {CANARY[:12]}
done
journalctl --no-pager 2>/dev/null | grep {CANARY[:12]}
true
"""


def test_a_given_key_is_seen_nowhere(fleet: Fleet) -> None:
    fleet.set_host_vars("gateway-01", {"gateway_master_key": KEY})
    try:
        check = fleet.converge("--check", "--diff", "-vvv")
        run = fleet.converge("--diff", "-vvv")
        assert CANARY not in check.output
        assert CANARY not in run.output
        # The key is in use, so it is somewhere: in the one file that only root reads.
        place = "/etc/inference-fleet/services/litellm-1/service.env"
        assert KEY in fleet.shell("gateway-01", f"cat {place}")
        assert fleet.shell("gateway-01", f"stat -c '%a %U' {place}").split() == ["600", "root"]
        for node in ADDRESSES:
            assert fleet.shell(node, SEARCH) == "", node
    finally:
        fleet.set_host_vars("gateway-01", None)
        fleet.converge()


def test_the_generated_key_is_in_no_output_and_no_fact_cache(fleet: Fleet) -> None:
    key = fleet.key_file.read_text().strip()
    run = fleet.converge("-vvv", "--diff")
    assert key not in run.output
    assert list((fleet.folder / "facts").iterdir())
    done = subprocess.run(
        ["grep", "-rl", key, str(fleet.folder / "facts")], check=False, capture_output=True, text=True
    )
    assert done.stdout == ""
