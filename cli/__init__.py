"""`ml` on the command line: a client of a running stack, and what starts and stops one."""
