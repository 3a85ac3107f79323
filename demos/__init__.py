"""The pendulums, the demonstrations, and programs to look with."""
