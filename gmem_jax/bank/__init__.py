"""The memory bank: storage, drawing, editing and lookup."""
