"""What people look at: the page, the CI's summary, annotations and JUnit properties. Judges nothing by itself."""
