# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's sources say, before anybody judges it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

# A GPU: keys of a device record with what is known of them, and what only the judgement needs.
Record = Dict[str, Any]


class Answer:
    """What one source said of all GPUs: records, the versions it knows, and the sentence that explains a gap.

    `lost` are GPUs that are there and about which nothing else is known: `index`, `pci_bus_id`, `health`, `reason`.
    `mismatch`: the driver says that its module and its library differ, whatever versions they have.
    """

    def __init__(self) -> None:
        self.records: List[Record] = []
        self.lost: List[Record] = []
        self.driver_version: Optional[str] = None
        self.library_version: Optional[str] = None
        self.cuda_version: Optional[str] = None
        self.problem: Optional[str] = None
        self.mismatch = False
