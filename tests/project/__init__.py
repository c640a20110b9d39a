"""The project itself: lint, types, import layers, generated files, documents."""
