"""Speed figures, each against its peer in one run; nothing here is asserted."""
