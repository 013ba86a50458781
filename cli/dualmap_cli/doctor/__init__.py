"""`dualmap doctor`: what of a running system is looked at, and what is said of it."""
