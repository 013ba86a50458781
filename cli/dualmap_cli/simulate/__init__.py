"""What is behind `dualmap simulate`: its options as a plan, and how its results look."""
