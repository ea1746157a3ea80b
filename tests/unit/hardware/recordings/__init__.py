# SPDX-License-Identifier: Apache-2.0
"""What the recorded machines show (the tables, by vendor) and how a recording reaches the facts (the adapters)."""
