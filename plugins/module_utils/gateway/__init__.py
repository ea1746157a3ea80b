# SPDX-License-Identifier: Apache-2.0
"""The gateway's logic: fragments of the service registry, pools, and the two configurations made from them."""
