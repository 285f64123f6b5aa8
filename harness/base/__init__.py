"""What both sides of the wall need: how a file is written, known and owned, and the form of the report.

Standard library, but for `workers`.
"""
