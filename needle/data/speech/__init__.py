"""How people say things: numbers, times, joints, values for a schema."""
