"""What is computed: the table of networks, the module, its head."""
