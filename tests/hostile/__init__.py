"""Attacks on real processes: a test of each states what is promised, and a bystander is served."""
