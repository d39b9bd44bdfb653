"""What is set for the whole process."""
