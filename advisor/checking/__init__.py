"""What is wrong with knowledge that loads: rules that cannot work, entries that cannot be trusted."""
