"""What is said between the services, and how it travels."""
