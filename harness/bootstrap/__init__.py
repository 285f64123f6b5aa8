"""Set-up on a bare machine, and the commands that need it. Standard library only: nothing else is there yet.

``settings`` reads the switches, ``target`` decides which interpreter is set up, ``plan`` what it lacks, ``setup`` does
it and remembers that it was done, ``commands`` runs the checks in it. Every way to fail is a ``SetupError``, which
names the step, the cause and the next thing to do, and ends in the same report that the lane prints.
"""
