# SPDX-License-Identifier: Apache-2.0
"""What of drivers a node needs: decided on the controller from its facts, without Ansible and without the node."""
