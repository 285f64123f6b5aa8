"""Watching any PyTorch program from outside: docs/watch.md."""
