# SPDX-License-Identifier: Apache-2.0
"""What is checked before anything is changed."""
