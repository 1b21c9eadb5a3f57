"""What reports say of the machine that they were made on."""
