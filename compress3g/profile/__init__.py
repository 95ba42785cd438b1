"""What a function costs: operations, time, memory, energy, and how sure that is."""
