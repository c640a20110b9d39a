"""The NVIDIA driver, and the CDI specification that nvidia-ctk generates for it.

May import: state, artifacts, kube, node, settings, and the modules beside the packages.
Start reading at spec.py.
"""
