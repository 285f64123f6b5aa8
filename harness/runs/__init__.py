"""How a lane is run: its process, what it leaves in its project, and how both end."""
