# SPDX-License-Identifier: Apache-2.0
"""What a node is made of: read on the node itself, with the standard library only (Python 3.8 and later)."""
