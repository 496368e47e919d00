"""Speed and memory, measured against the peers in one run; nothing here is asserted."""
