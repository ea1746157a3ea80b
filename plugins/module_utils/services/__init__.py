# SPDX-License-Identifier: Apache-2.0
"""What makes one inference service run on a node: image, files, systemd unit, readiness.

Standard library only, Python 3.8 or later: this code runs on the node.
"""
