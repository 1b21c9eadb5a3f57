"""What the code runs on."""
