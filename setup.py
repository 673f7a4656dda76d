# SPDX-License-Identifier: Apache-2.0
from setuptools import setup  # a shim for tools that look for setup.py; see pyproject.toml

setup()
