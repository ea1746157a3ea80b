# SPDX-License-Identifier: Apache-2.0
"""Container runtime: the configuration of the Docker daemon."""
