"""``python -m influence_ssl``: the command."""

import sys

from influence_ssl.command.main import main

sys.exit(main())
