#!/usr/bin/env python
"""Termkeeper's commands. `manage.py help` lists them."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "billing_site.settings")
    if sys.argv[1:2] == ["demo"]:  # starts the servers that the settings ask for, so it runs before Django
        from billing_site.local.demo import main as demo

        sys.exit(demo(sys.argv[2:]))
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
