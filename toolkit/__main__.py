"""The entry point of `python -m toolkit`, which is the same as `nvidia-toolkit`.

The agent runs it by its path, for itself and for its children (see `toolkit.agent.child.program`).
"""

import os
import sys

_DIRECTORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if _DIRECTORY not in sys.path:
    sys.path.insert(0, _DIRECTORY)

if sys.argv[1:2] == ["resident"]:
    # Without the modules of the command line, whose memory it would keep.
    from toolkit.agent.daemon import main

    sys.exit(main())

if sys.argv[1:2] == ["node-report"]:
    # It starts often, and reads no settings.
    from toolkit.kube.node_report import main as report

    sys.exit(report())

from toolkit.program import main as program  # noqa: E402

program()
