"""What the tests share: fake and real runtimes, booted nodes, clusters, containers."""
