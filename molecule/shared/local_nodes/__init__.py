# SPDX-License-Identifier: Apache-2.0
"""Local nodes: real systemd machines in podman containers, for the demo and the tests.

A node is a Debian root file system with systemd as PID 1, an SSH server and room for its own container engine. Nodes of
one inventory form a *set*; a set is brought up and taken down as one. Engine images come from their official registries
where those can be reached and are built locally otherwise; either way nodes pull them from a local image registry.

Run as ``python -m local_nodes --help`` with ``molecule/shared`` on ``PYTHONPATH``; the Makefile does so.
"""
