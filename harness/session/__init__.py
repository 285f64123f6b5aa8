"""What a test session has of its lane: which it is, its options, its run directory, its terminal, its report."""
