"""The system under test: a voice-adapter training lane, run as a child process (``python -m harness.lane``)."""
