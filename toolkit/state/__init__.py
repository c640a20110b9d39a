"""The files kept between runs: record, journal, readiness record, restart budget, binary cache.

May import: node, settings, and the modules beside the packages.
Start reading at record.py; readiness_probe.py and liveness.py decide what the pod's probes say.
"""
