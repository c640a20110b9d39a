"""Roll-outs over many nodes, on a real control plane: `python -m benchmarks.scale`."""
