"""The chart, the image, and a real Kubernetes on a booted node."""
