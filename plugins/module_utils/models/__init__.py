# SPDX-License-Identifier: Apache-2.0
"""Model files: presence, download, transfer from a package."""
